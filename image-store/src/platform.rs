//! Which of an image's platforms fits this machine.
//!
//! Pure comparison, apart from asking the processor once what it can do.

use std::fmt;

use serde::Deserialize;

/// A platform as indexes and configurations write it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub(crate) struct Platform {
    /// `linux` and others.
    #[serde(default)]
    pub os: String,
    /// Go's name of the architecture.
    #[serde(default)]
    pub architecture: String,
    /// The generation, such as `v8` or `v3`.
    #[serde(default)]
    pub variant: Option<String>,
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match self.variant.as_deref() {
            None | Some("") => Ok(()),
            Some(variant) => write!(f, "/{variant}"),
        }
    }
}

/// What this machine runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Machine {
    architecture: &'static str,
    /// Variants that run here, the best first; an image without one runs too.
    variants: &'static [&'static str],
}

impl Machine {
    /// The machine that this program runs on.
    #[must_use]
    pub(crate) fn current() -> Self {
        match std::env::consts::ARCH {
            "x86_64" => Self {
                architecture: "amd64",
                variants: amd64_variants(),
            },
            "aarch64" => Self {
                architecture: "arm64",
                variants: &["v8"],
            },
            "arm" => Self {
                architecture: "arm",
                variants: &["v7", "v6", "v5"],
            },
            "x86" => Self {
                architecture: "386",
                variants: &[],
            },
            "powerpc64" => Self {
                architecture: "ppc64le",
                variants: &[],
            },
            other => Self {
                architecture: other,
                variants: &[],
            },
        }
    }

    /// How well a platform fits: lower is better, `None` is not at all.
    #[must_use]
    pub(crate) fn rank(&self, platform: &Platform) -> Option<usize> {
        if platform.os != "linux" || platform.architecture != self.architecture {
            return None;
        }
        match platform.variant.as_deref() {
            None | Some("") => Some(self.variants.len()),
            Some(variant) => self.variants.iter().position(|v| *v == variant),
        }
    }

    /// Whether a configuration's platform runs here. One that does not say
    /// (old builders) is believed to.
    #[must_use]
    pub(crate) fn runs(&self, platform: &Platform) -> bool {
        let unsaid = platform.os.is_empty() && platform.architecture.is_empty();
        unsaid || self.rank(platform).is_some()
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "linux/{}", self.architecture)?;
        match self.variants.first() {
            Some(best) if self.architecture != "amd64" => write!(f, "/{best}"),
            _ => Ok(()),
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn amd64_variants() -> &'static [&'static str] {
    let v2 = is_x86_feature_detected!("sse4.2") && is_x86_feature_detected!("popcnt");
    let v3 = v2
        && is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("bmi2")
        && is_x86_feature_detected!("fma");
    let v4 = v3
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512cd");
    match (v2, v3, v4) {
        (_, _, true) => &["v4", "v3", "v2", "v1"],
        (_, true, _) => &["v3", "v2", "v1"],
        (true, _, _) => &["v2", "v1"],
        _ => &["v1"],
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn amd64_variants() -> &'static [&'static str] {
    &["v1"]
}

#[cfg(test)]
mod tests {
    use super::*;

    const ARM: Machine = Machine {
        architecture: "arm64",
        variants: &["v8"],
    };
    const AMD: Machine = Machine {
        architecture: "amd64",
        variants: &["v3", "v2", "v1"],
    };

    fn platform(text: &str) -> Platform {
        let mut parts = text.split('/').map(str::to_owned);
        Platform {
            os: parts.next().unwrap(),
            architecture: parts.next().unwrap(),
            variant: parts.next(),
        }
    }

    #[test]
    fn the_best_variant_that_runs_wins() {
        assert_eq!(AMD.rank(&platform("linux/amd64/v3")), Some(0));
        assert_eq!(AMD.rank(&platform("linux/amd64/v4")), None);
        assert_eq!(AMD.rank(&platform("linux/amd64")), Some(3));
        assert_eq!(ARM.rank(&platform("linux/arm64/v8")), Some(0));
        assert_eq!(ARM.rank(&platform("linux/arm64")), Some(1));
    }

    #[test]
    fn other_systems_and_attestations_do_not_fit() {
        for other in [
            "windows/amd64",
            "linux/arm64",
            "unknown/unknown",
            "linux/386",
        ] {
            assert_eq!(AMD.rank(&platform(other)), None, "{other}");
        }
        assert!(AMD.runs(&Platform::default()));
        assert!(!AMD.runs(&platform("linux/s390x")));
    }

    #[test]
    fn this_machine_runs_its_own_images() {
        let machine = Machine::current();
        let own = platform(&format!("linux/{}", machine.architecture));
        assert!(machine.rank(&own).is_some());
    }
}
