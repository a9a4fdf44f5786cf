//! Frames out of bytes, and bytes of frames.
//!
//! Owns the bytes that are not a frame yet: at most [`CONTROL`] and what one
//! read adds. Data is handed on as it comes in, however long its frame says
//! it is. An error ends the connection: the place of the next frame is lost.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::headers::{EmptyBlocks, Headers, HeadersError, Inflater};

/// The longest control frame, without its 8 bytes of header.
pub(crate) const CONTROL: usize = 64 * 1024;
/// The header of every frame.
const HEAD: usize = 8;
const VERSION: u16 = 3;
const FIN: u8 = 1;

/// What a client may send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Frame {
    /// SYN_STREAM.
    Open {
        id: u32,
        headers: Headers,
        fin: bool,
    },
    /// A piece of DATA; `fin` with the last piece of a frame that has it.
    Data { id: u32, bytes: Bytes, fin: bool },
    /// RST_STREAM.
    Reset(u32),
    /// PING.
    Ping(u32),
    /// GOAWAY.
    Leave,
    /// HEADERS that end a stream.
    End(u32),
    /// SETTINGS, WINDOW_UPDATE, SYN_REPLY and others that change nothing here.
    Other,
}

/// Why bytes are no frame.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FrameError {
    /// Not SPDY/3.
    #[error("a control frame of version {0}")]
    Version(u16),
    /// Longer than [`CONTROL`].
    #[error("a control frame of {0} bytes")]
    Long(usize),
    /// Shorter or longer than its type.
    #[error("a control frame of type {kind} of {length} bytes")]
    Length { kind: u16, length: usize },
    /// Its headers cannot be read.
    #[error(transparent)]
    Headers(#[from] HeadersError),
}

/// Data of which more is to come.
#[derive(Debug, Clone, Copy)]
struct Open {
    id: u32,
    left: usize,
    fin: bool,
}

/// Cuts bytes into frames.
#[derive(Debug)]
pub(crate) struct Decoder {
    bytes: BytesMut,
    data: Option<Open>,
    inflater: Inflater,
}

impl Decoder {
    /// Begins with bytes that came with the request.
    pub(crate) fn new(bytes: BytesMut) -> Self {
        Self {
            bytes,
            data: None,
            inflater: Inflater::new(),
        }
    }

    /// Where to add what was read.
    pub(crate) fn space(&mut self) -> &mut BytesMut {
        &mut self.bytes
    }

    /// The next frame; `None` when there is need of more bytes.
    pub(crate) fn next(&mut self) -> Result<Option<Frame>, FrameError> {
        if let Some(open) = self.data {
            return Ok(self.data(open));
        }
        let Some(head) = self.bytes.first_chunk::<HEAD>() else {
            return Ok(None);
        };
        let mut head = &head[..];
        let word = head.get_u32();
        let length = head.get_u32();
        let flags = (length >> 24) as u8;
        let length = (length & 0xff_ffff) as usize;
        if word >> 31 == 0 {
            self.bytes.advance(HEAD);
            return Ok(self.data(Open {
                id: word,
                left: length,
                fin: flags & FIN != 0,
            }));
        }
        let (version, kind) = ((word >> 16) as u16 & 0x7fff, word as u16);
        if version != VERSION {
            return Err(FrameError::Version(version));
        }
        if length > CONTROL {
            return Err(FrameError::Long(length));
        }
        if self.bytes.len() < HEAD + length {
            return Ok(None);
        }
        self.bytes.advance(HEAD);
        let body = self.bytes.split_to(length);
        self.control(kind, flags, &body).map(Some)
    }

    fn data(&mut self, open: Open) -> Option<Frame> {
        let Open { id, left, fin } = open;
        if left > 0 && self.bytes.is_empty() {
            self.data = Some(open);
            return None;
        }
        let bytes = self.bytes.split_to(left.min(self.bytes.len())).freeze();
        let left = left - bytes.len();
        self.data = (left > 0).then_some(Open { id, left, fin });
        Some(Frame::Data {
            id,
            fin: fin && left == 0,
            bytes,
        })
    }

    fn control(&mut self, kind: u16, flags: u8, mut body: &[u8]) -> Result<Frame, FrameError> {
        let wrong = FrameError::Length {
            kind,
            length: body.len(),
        };
        let mut number = || body.try_get_u32().map_err(|_| ());
        let fin = flags & FIN != 0;
        let frame = match kind {
            // SYN_STREAM: the stream, the one it belongs to, priority and slot.
            1 => (|| {
                let id = number()?;
                number()?;
                Ok(Frame::Open {
                    id: id & 0x7fff_ffff,
                    headers: Headers::default(),
                    fin,
                })
            })(),
            // SYN_REPLY and HEADERS: the stream.
            2 => number().map(|_| Frame::Other),
            8 => number().map(|id| {
                if fin {
                    Frame::End(id & 0x7fff_ffff)
                } else {
                    Frame::Other
                }
            }),
            // RST_STREAM: the stream and why.
            3 => (|| {
                let id = number()?;
                number()?;
                Ok(Frame::Reset(id & 0x7fff_ffff))
            })(),
            6 => number().map(Frame::Ping),
            7 => Ok(Frame::Leave),
            _ => Ok(Frame::Other),
        };
        let frame: Result<Frame, ()> = frame;
        let Ok(mut frame) = frame else {
            return Err(wrong);
        };
        match (kind, &mut frame) {
            (1, Frame::Open { headers, .. }) => {
                let Some((_, block)) = body.split_first_chunk::<2>() else {
                    return Err(wrong);
                };
                *headers = self.inflater.read(block)?;
            }
            (2 | 8, _) => {
                self.inflater.read(body)?;
            }
            (3 | 6, _) if !body.is_empty() => return Err(wrong),
            _ => {}
        }
        Ok(frame)
    }
}

/// Makes the frames that a server sends.
#[derive(Debug, Default)]
pub(crate) struct Encoder {
    blocks: EmptyBlocks,
}

impl Encoder {
    /// SYN_REPLY without headers: the stream is accepted.
    pub(crate) fn reply(&mut self, id: u32, into: &mut BytesMut) {
        let block = self.blocks.next();
        // Blocks have 14 or 16 bytes.
        control(2, 4 + block.len() as u32, into);
        into.put_u32(id);
        into.put(block);
    }
}

/// RST_STREAM.
pub(crate) fn reset(id: u32, status: u32, into: &mut BytesMut) {
    control(3, 8, into);
    into.put_u32(id);
    into.put_u32(status);
}

/// PING, which answers one of the same number.
pub(crate) fn ping(id: u32, into: &mut BytesMut) {
    control(6, 4, into);
    into.put_u32(id);
}

/// GOAWAY: no more streams, all is well.
pub(crate) fn leave(last: u32, into: &mut BytesMut) {
    control(7, 8, into);
    into.put_u32(last);
    into.put_u32(0);
}

/// DATA, with at most 2^24 - 1 bytes; what is sent here is cut far below.
pub(crate) fn data(id: u32, bytes: &[u8], fin: bool, into: &mut BytesMut) {
    into.put_u32(id);
    into.put_u32(u32::from(fin) << 24 | (bytes.len() as u32 & 0xff_ffff));
    into.put_slice(bytes);
}

fn control(kind: u16, length: u32, into: &mut BytesMut) {
    into.put_u16(0x8000 | VERSION);
    into.put_u16(kind);
    into.put_u32(length);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::Encoding;
    use super::*;

    /// All frames of these bytes, data of one stream joined, and whether it
    /// ended with an error.
    fn frames(parts: &[&[u8]]) -> (Vec<Frame>, bool) {
        let mut decoder = Decoder::new(BytesMut::new());
        let mut frames: Vec<Frame> = Vec::new();
        for part in parts {
            decoder.space().extend_from_slice(part);
            loop {
                match decoder.next() {
                    Ok(Some(frame)) => join(&mut frames, frame),
                    Ok(None) => break,
                    Err(_) => return (frames, true),
                }
                assert!(decoder.bytes.len() <= CONTROL + HEAD + part.len());
            }
        }
        (frames, false)
    }

    fn join(frames: &mut Vec<Frame>, frame: Frame) {
        if let (
            Some(Frame::Data {
                id: last,
                bytes: before,
                fin: end @ false,
            }),
            Frame::Data { id, bytes, fin },
        ) = (frames.last_mut(), &frame)
            && last == id
        {
            *before = [&before[..], &bytes[..]].concat().into();
            *end = *fin;
            return;
        }
        frames.push(frame);
    }

    fn sample(payload: &[u8]) -> Vec<u8> {
        let mut client = Encoding::new();
        client.open(1, &[("streamtype", "error")], false);
        client.open(3, &[("streamtype", "stdin")], true);
        client.data(3, payload, false);
        client.ping(7);
        client.data(1, payload, true);
        client.reset(1);
        client.leave();
        client.take().to_vec()
    }

    #[test]
    fn the_client_s_frames_are_read() {
        let (frames, failed) = frames(&[&sample(b"hello")]);
        assert!(!failed);
        assert_eq!(frames.len(), 7);
        assert!(
            matches!(&frames[1], Frame::Open { id: 3, headers, fin: true } if headers.get("streamtype") == Some("stdin"))
        );
        assert_eq!(frames[3], Frame::Ping(7));
        assert_eq!(
            frames[4],
            Frame::Data {
                id: 1,
                bytes: Bytes::from_static(b"hello"),
                fin: true
            }
        );
        assert_eq!(frames[5..], [Frame::Reset(1), Frame::Leave]);
    }

    #[test]
    fn a_data_frame_of_16_mib_is_handed_on_in_pieces() {
        let mut decoder = Decoder::new(BytesMut::from(&[0, 0, 0, 1, 1, 0xff, 0xff, 0xff][..]));
        assert_eq!(decoder.next().unwrap(), None);
        decoder.space().extend_from_slice(&[1; 100]);
        assert!(
            matches!(decoder.next().unwrap(), Some(Frame::Data { id: 1, bytes, fin: false }) if bytes.len() == 100)
        );
        assert!(decoder.bytes.is_empty());
    }

    #[test]
    fn a_long_control_frame_is_refused_before_it_is_there() {
        let mut decoder = Decoder::new(BytesMut::from(&[0x80, 3, 0, 4, 0, 1, 0, 1][..]));
        assert!(matches!(decoder.next(), Err(FrameError::Long(65_537))));
    }

    #[test]
    fn a_frame_of_the_wrong_length_is_refused() {
        for (kind, body) in [(6, 3), (6, 5), (3, 4), (3, 9), (1, 9), (2, 3), (8, 0)] {
            let mut bytes = BytesMut::new();
            control(kind, body, &mut bytes);
            bytes.put_bytes(0, body as usize);
            assert!(
                matches!(Decoder::new(bytes).next(), Err(FrameError::Length { .. })),
                "{kind} {body}"
            );
        }
    }

    proptest! {
        #[test]
        fn any_bytes_end_in_frames_or_an_error(
            bytes in prop::collection::vec(any::<u8>(), 0..2048),
            control in any::<bool>(), kind in 0_u8..10,
        ) {
            let mut bytes = bytes;
            if control && bytes.len() > 8 {
                bytes[..6].copy_from_slice(&[0x80, 3, 0, kind, 0, 0]);
            }
            frames(&[&bytes]);
        }

        #[test]
        fn broken_frames_never_panic(
            at in any::<prop::sample::Index>(), byte in any::<u8>(),
        ) {
            let mut bytes = sample(b"some payload");
            let at = at.index(bytes.len());
            bytes[at] = byte;
            frames(&[&bytes]);
        }

        #[test]
        fn any_split_gives_the_same_frames(
            payload in prop::collection::vec(any::<u8>(), 1..600),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
        ) {
            let bytes = sample(&payload);
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len())).collect();
            cuts.sort_unstable();
            let mut parts = Vec::new();
            let mut from = 0;
            for cut in cuts {
                parts.push(&bytes[from..cut]);
                from = cut;
            }
            parts.push(&bytes[from..]);
            prop_assert_eq!(frames(&parts), frames(&[&bytes]));
        }
    }
}
