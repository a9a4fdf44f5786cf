//! The sizes of a client's terminal.
//!
//! Owns the text of one that is not whole: at most [`TEXT`] bytes. A client
//! that sends anything else is not heard on this any more; the session goes
//! on.

use tokio::sync::{mpsc, watch};

use crate::channels::Size;

/// What a size may take to say.
const TEXT: usize = 4096;

/// Reads `{"Width":80,"Height":24}`, one after the other.
#[derive(Debug, Default)]
pub(super) struct Sizes {
    text: Vec<u8>,
    deaf: bool,
}

impl Sizes {
    /// The last size that is whole with these bytes.
    pub(super) fn hear(&mut self, bytes: &[u8]) -> Option<Size> {
        let mut last = None;
        for piece in bytes.chunks(TEXT) {
            if self.deaf {
                break;
            }
            self.text.extend_from_slice(piece);
            last = self.whole().or(last);
            self.deaf |= self.text.len() > TEXT;
        }
        if self.deaf {
            self.text = Vec::new();
        }
        last
    }

    fn whole(&mut self) -> Option<Size> {
        let mut last = None;
        let mut values =
            serde_json::Deserializer::from_slice(&self.text).into_iter::<serde_json::Value>();
        for value in values.by_ref() {
            match value {
                Ok(value) => last = size(&value).or(last),
                Err(error) => {
                    self.deaf = !error.is_eof();
                    break;
                }
            }
        }
        let read = values.byte_offset();
        self.text.drain(..read);
        last
    }
}

fn size(value: &serde_json::Value) -> Option<Size> {
    let side = |name| u16::try_from(value.get(name)?.as_u64()?).ok();
    Some(Size {
        columns: side("Width")?,
        rows: side("Height")?,
    })
}

/// Hands the newest size on whenever the handler takes one.
pub(super) async fn forward(mut newest: watch::Receiver<Option<Size>>, to: mpsc::Sender<Size>) {
    while newest.changed().await.is_ok() {
        let Ok(place) = to.reserve().await else {
            return;
        };
        let size = *newest.borrow_and_update();
        if let Some(size) = size {
            place.send(size);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_in_any_pieces_are_heard() {
        let text = b"{\"Width\":80,\"Height\":24}\n{\"Width\":132,\"Height\":43}\n";
        let size = Some(Size {
            columns: 132,
            rows: 43,
        });
        assert_eq!(Sizes::default().hear(text), size);
        for cut in 0..text.len() {
            let mut sizes = Sizes::default();
            let (first, second) = (sizes.hear(&text[..cut]), sizes.hear(&text[cut..]));
            assert_eq!(second.or(first), size, "{cut}");
            assert!(sizes.text.len() < 2);
        }
    }

    #[test]
    fn nonsense_is_not_kept() {
        for text in [&[b'{'; 2 * TEXT][..], b"nonsense", &[b' '; 3 * TEXT]] {
            let mut sizes = Sizes::default();
            assert_eq!(sizes.hear(text), None);
            assert!(sizes.text.len() <= TEXT);
        }
        assert_eq!(
            Sizes::default().hear(br#"{"Width":80,"Height":70000}"#),
            None
        );
    }
}
