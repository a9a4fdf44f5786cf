//! The certificate of the server for exec, attach and port-forward.
//!
//! Owns what that server says in a handshake, made of the files that the configuration
//! names, and renews it when one of them changes: certificates are replaced by files or
//! links in their place while the engine runs. The files are looked at every ten seconds
//! on a thread that may wait for a disk; no handshake does. What cannot be read or does
//! not fit together changes nothing, and is warned of once.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::sync::watch;

use crate::config::StreamingTls;
use crate::regular_file;

/// How often files are looked at.
const LOOK: Duration = Duration::from_secs(10);
/// What a file may have: a chain of certificates has some KiB.
const LONGEST: u64 = 1024 * 1024;

/// Why a server with these files cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CertificateError {
    /// One cannot be read.
    #[error("read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// One does not have what it should.
    #[error("{} has no {what} in PEM", path.display())]
    Without {
        /// The file.
        path: PathBuf,
        /// What it should have.
        what: &'static str,
    },
    /// They do not fit together, or are of a kind that TLS does not take.
    #[error("certificate {}", path.display())]
    Unfit {
        /// The file that is at fault, as far as that is known.
        path: PathBuf,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// What the files held, byte by byte.
#[derive(Debug, PartialEq, Eq)]
struct Texts {
    certificate: Vec<u8>,
    key: Vec<u8>,
    client_ca: Option<Vec<u8>>,
}

/// What the server says now.
#[derive(Debug)]
pub(crate) struct Certificates {
    files: StreamingTls,
    texts: Texts,
    shown: watch::Sender<Arc<ServerConfig>>,
}

impl Certificates {
    /// Reads the files. Blocks.
    ///
    /// # Errors
    /// They cannot be read, or do not fit together.
    pub(crate) fn open(files: StreamingTls) -> Result<Self, CertificateError> {
        let texts = Texts::read(&files)?;
        let shown = watch::Sender::new(texts.server(&files)?);
        Ok(Self {
            files,
            texts,
            shown,
        })
    }

    /// What each new connection is answered with.
    pub(crate) fn shown(&self) -> watch::Receiver<Arc<ServerConfig>> {
        self.shown.subscribe()
    }

    /// Renews it for as long as it runs.
    pub(crate) async fn renew(mut self) {
        let mut warned = String::new();
        loop {
            tokio::time::sleep(LOOK).await;
            let looking = tokio::task::spawn_blocking(move || {
                let result = self.look();
                (self, result)
            });
            // The engine ends.
            let Ok((certificates, result)) = looking.await else {
                return;
            };
            self = certificates;
            match result {
                Ok(false) => warned.clear(),
                Ok(true) => {
                    warned.clear();
                    let path = self.files.certificate.display();
                    tracing::info!(%path, "exec, attach and port-forward have another certificate");
                }
                Err(error) => {
                    let error = format!("{:#}", anyhow::Error::new(error));
                    if warned != error {
                        tracing::warn!(error, "exec and attach keep their former certificate");
                        warned = error;
                    }
                }
            }
        }
    }

    /// Whether the files have changed, and what is shown with them.
    fn look(&mut self) -> Result<bool, CertificateError> {
        let texts = Texts::read(&self.files)?;
        if texts == self.texts {
            return Ok(false);
        }
        self.shown.send_replace(texts.server(&self.files)?);
        self.texts = texts;
        Ok(true)
    }
}

impl Texts {
    fn read(files: &StreamingTls) -> Result<Self, CertificateError> {
        let client_ca = files.client_ca.as_deref();
        Ok(Self {
            certificate: read(&files.certificate)?,
            key: read(&files.key)?,
            client_ca: client_ca.map(read).transpose()?,
        })
    }

    fn server(&self, files: &StreamingTls) -> Result<Arc<ServerConfig>, CertificateError> {
        let chain = certificates(&files.certificate, &self.certificate)?;
        let key = PrivateKeyDer::from_pem_slice(&self.key).map_err(|_| {
            let (path, what) = (files.key.clone(), "private key");
            CertificateError::Without { path, what }
        })?;
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| unfit(&files.certificate, error))?;
        let builder = match (&files.client_ca, &self.client_ca) {
            (Some(path), Some(text)) => {
                let mut roots = RootCertStore::empty();
                for authority in certificates(path, text)? {
                    roots.add(authority).map_err(|error| unfit(path, error))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
                let verifier = verifier.build().map_err(|error| unfit(path, error))?;
                builder.with_client_cert_verifier(verifier)
            }
            _ => builder.with_no_client_auth(),
        };
        let server = builder
            .with_single_cert(chain, key)
            .map_err(|error| unfit(&files.certificate, error))?;
        Ok(Arc::new(server))
    }
}

fn read(path: &Path) -> Result<Vec<u8>, CertificateError> {
    regular_file::read(path, LONGEST).map_err(|source| CertificateError::Read {
        path: path.to_owned(),
        source,
    })
}

fn certificates(
    path: &Path,
    text: &[u8],
) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    let all = CertificateDer::pem_slice_iter(text).collect::<Result<Vec<_>, _>>();
    match all {
        Ok(all) if !all.is_empty() => Ok(all),
        Ok(_) | Err(_) => Err(CertificateError::Without {
            path: path.to_owned(),
            what: "certificate",
        }),
    }
}

fn unfit(
    path: &Path,
    error: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> CertificateError {
    CertificateError::Unfit {
        path: path.to_owned(),
        source: error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes a new certificate and its key.
    fn write(files: &StreamingTls) {
        let made = rcgen::generate_simple_self_signed(["node".to_owned()]).expect("made");
        std::fs::write(&files.certificate, made.cert.pem()).expect("written");
        std::fs::write(&files.key, made.signing_key.serialize_pem()).expect("written");
    }

    fn files(dir: &Path) -> StreamingTls {
        StreamingTls {
            certificate: dir.join("tls.crt"),
            key: dir.join("tls.key"),
            client_ca: None,
        }
    }

    #[test]
    fn a_certificate_is_renewed_when_its_files_change() {
        let dir = tempfile::tempdir().expect("a folder");
        let files = files(dir.path());
        write(&files);
        let mut certificates = Certificates::open(files.clone()).expect("read");
        let shown = certificates.shown();
        let first = Arc::clone(&shown.borrow());
        assert!(!certificates.look().expect("read"));
        assert!(Arc::ptr_eq(&first, &shown.borrow()));
        write(&files);
        assert!(certificates.look().expect("read"));
        assert!(!Arc::ptr_eq(&first, &shown.borrow()));
    }

    #[test]
    fn files_that_do_not_fit_change_nothing() {
        let dir = tempfile::tempdir().expect("a folder");
        let files = files(dir.path());
        write(&files);
        let mut certificates = Certificates::open(files.clone()).expect("read");
        let first = Arc::clone(&certificates.shown().borrow());
        let certificate = std::fs::read(&files.certificate).expect("read");
        // Between the two writes of whoever replaces them.
        write(&files);
        std::fs::write(&files.certificate, &certificate).expect("written");
        let error = certificates.look().expect_err("not its key");
        assert!(error.to_string().contains("tls.crt"), "{error}");
        std::fs::write(&files.certificate, "nothing").expect("written");
        let error = certificates.look().expect_err("empty");
        assert!(error.to_string().contains("no certificate"), "{error}");
        std::fs::remove_file(&files.key).expect("removed");
        let error = certificates.look().expect_err("missing");
        assert!(error.to_string().contains("tls.key"), "{error}");
        assert!(Arc::ptr_eq(&first, &certificates.shown().borrow()));
        write(&files);
        assert!(certificates.look().expect("read"));
    }

    #[test]
    fn clients_have_to_show_a_certificate_where_authorities_are_named() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut files = files(dir.path());
        write(&files);
        files.client_ca = Some(files.certificate.clone());
        Certificates::open(files.clone()).expect("an authority");
        let empty = dir.path().join("empty");
        std::fs::write(&empty, "").expect("written");
        files.client_ca = Some(empty);
        let error = Certificates::open(files).expect_err("none");
        assert!(
            error.to_string().contains("empty has no certificate"),
            "{error}"
        );
    }
}
