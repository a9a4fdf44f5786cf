//! Splits a stream of output into log lines.
//!
//! Owns at most one unfinished line per stream. Never loses or reorders a
//! byte; writes only into the buffer it is given.

use super::Stamp;
use crate::sys::bytes::find_byte;

/// Longest piece of a line: what is longer is split and tagged as partial.
/// The kubelet's own limit for one log line.
pub const MAX_LINE: usize = 16 * 1024;

/// Which output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output, and all of a terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    fn name(self) -> &'static [u8] {
        match self {
            Self::Stdout => b"stdout",
            Self::Stderr => b"stderr",
        }
    }
}

/// Whether the line goes on in the next record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tag {
    Full,
    Partial,
}

/// Turns chunks of one stream into records.
#[derive(Debug)]
pub struct LineSplitter {
    stream: Stream,
    /// The unfinished line: shorter than [`MAX_LINE`], without a line end.
    unfinished: Vec<u8>,
}

impl LineSplitter {
    /// A splitter for one stream.
    #[must_use]
    pub fn new(stream: Stream) -> Self {
        Self {
            stream,
            unfinished: Vec::new(),
        }
    }

    /// A splitter in the middle of a line.
    #[must_use]
    pub fn resume(stream: Stream, mut unfinished: Vec<u8>) -> Self {
        unfinished.truncate(MAX_LINE);
        Self { stream, unfinished }
    }

    /// The line whose end is still to come.
    #[must_use]
    pub fn unfinished(&self) -> &[u8] {
        &self.unfinished
    }

    /// Bytes of memory that the unfinished line takes.
    #[must_use]
    pub fn held(&self) -> usize {
        self.unfinished.capacity()
    }

    /// Appends the records of a chunk to `out`.
    pub fn push(&mut self, chunk: &[u8], stamp: &Stamp, out: &mut Vec<u8>) {
        let mut rest = chunk;
        while let Some(end) = find_byte(b'\n', rest) {
            let (line, behind) = rest.split_at(end);
            self.line(line, stamp, out);
            rest = behind.get(1..).unwrap_or_default();
        }
        self.keep(rest, stamp, out);
    }

    /// Appends what is left: the stream ended. A line without its end is
    /// partial, as in containerd's logs.
    pub fn finish(&mut self, stamp: &Stamp, out: &mut Vec<u8>) {
        if !self.unfinished.is_empty() {
            record(self.stream, Tag::Partial, &[&self.unfinished], stamp, out);
        }
        self.unfinished = Vec::new();
    }

    /// A line that ends here, maybe begun by earlier chunks.
    fn line(&mut self, end: &[u8], stamp: &Stamp, out: &mut Vec<u8>) {
        let end = self.split(end, stamp, out);
        record(self.stream, Tag::Full, &[&self.unfinished, end], stamp, out);
        self.unfinished.clear();
    }

    /// A piece whose line end is still to come.
    fn keep(&mut self, piece: &[u8], stamp: &Stamp, out: &mut Vec<u8>) {
        let piece = self.split(piece, stamp, out);
        self.unfinished.extend_from_slice(piece);
    }

    /// Writes partial records until the unfinished line and the rest that is
    /// returned are at most [`MAX_LINE`] together.
    fn split<'a>(&mut self, piece: &'a [u8], stamp: &Stamp, out: &mut Vec<u8>) -> &'a [u8] {
        let mut rest = piece;
        while self.unfinished.len() + rest.len() > MAX_LINE {
            let (head, tail) = rest.split_at(MAX_LINE - self.unfinished.len());
            record(
                self.stream,
                Tag::Partial,
                &[&self.unfinished, head],
                stamp,
                out,
            );
            self.unfinished.clear();
            rest = tail;
        }
        rest
    }
}

fn record(stream: Stream, tag: Tag, text: &[&[u8]], stamp: &Stamp, out: &mut Vec<u8>) {
    out.extend_from_slice(stamp.as_bytes());
    out.push(b' ');
    out.extend_from_slice(stream.name());
    out.extend_from_slice(match tag {
        Tag::Full => b" F ",
        Tag::Partial => b" P ",
    });
    for piece in text {
        out.extend_from_slice(piece);
    }
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::stamp::LENGTH;
    use super::*;

    fn run(chunks: &[&[u8]]) -> Vec<u8> {
        let mut splitter = LineSplitter::new(Stream::Stderr);
        let mut out = Vec::new();
        for chunk in chunks {
            splitter.push(chunk, &Stamp::new(0), &mut out);
        }
        splitter.finish(&Stamp::new(0), &mut out);
        out
    }

    /// (partial, text) of each record.
    fn records(log: &[u8]) -> Vec<(bool, Vec<u8>)> {
        let body = log.strip_suffix(b"\n").unwrap_or_default();
        if log.is_empty() {
            return Vec::new();
        }
        body.split(|byte| *byte == b'\n')
            .map(|line| {
                let (head, text) = line.split_at(LENGTH + b" stderr F ".len());
                assert_eq!(&head[..LENGTH], b"1970-01-01T00:00:00.000000000Z");
                let partial = match &head[LENGTH..] {
                    b" stderr F " => false,
                    b" stderr P " => true,
                    other => panic!("{other:?}"),
                };
                (partial, text.to_vec())
            })
            .collect()
    }

    #[test]
    fn lines_across_chunks_are_one_record() {
        let log = run(&[b"one\ntw", b"o\n", b"", b"\n", b"rest"]);
        assert_eq!(
            records(&log),
            [
                (false, b"one".to_vec()),
                (false, b"two".to_vec()),
                (false, b"".to_vec()),
                (true, b"rest".to_vec())
            ]
        );
    }

    #[test]
    fn line_of_exactly_the_limit_is_full() {
        let line = vec![b'x'; MAX_LINE];
        let log = run(&[&line, b"\n"]);
        assert_eq!(records(&log), [(false, line)]);
    }

    #[test]
    fn longer_line_is_split_at_the_limit() {
        let line = vec![b'x'; 2 * MAX_LINE + 1];
        let log = run(&[&line[..5], &line[5..], b"\n"]);
        let whole = line[..MAX_LINE].to_vec();
        assert_eq!(
            records(&log),
            [(true, whole.clone()), (true, whole), (false, b"x".to_vec())]
        );
    }

    fn chunk() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            proptest::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..100),
            (0..3 * MAX_LINE).prop_map(|length| vec![b'y'; length]),
            Just(b"\n".to_vec()),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn joined_records_are_the_stream(chunks in proptest::collection::vec(chunk(), 0..12)) {
            let borrowed: Vec<_> = chunks.iter().map(Vec::as_slice).collect();
            let mut joined = Vec::new();
            for (partial, text) in records(&run(&borrowed)) {
                prop_assert!(text.len() <= MAX_LINE);
                joined.extend_from_slice(&text);
                if !partial {
                    joined.push(b'\n');
                }
            }
            prop_assert_eq!(joined, chunks.concat());
        }

        #[test]
        fn cuts_between_chunks_do_not_show(
            bytes in chunk(), more in chunk(), cut in any::<proptest::sample::Index>(),
        ) {
            let all = [bytes, more].concat();
            let (head, tail) = all.split_at(cut.index(all.len() + 1));
            prop_assert_eq!(run(&[head, tail]), run(&[&all]));
        }
    }
}
