//! SPDY over any pair of byte streams.
//!
//! Owns the reading and the writing half. Reading keeps one frame's pieces at
//! a time, writing at most [`BATCH`] and one message. Dropping both leaves the
//! client with a closed connection and nothing here.

use std::collections::VecDeque;
use std::io;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::frame::{self, Decoder, Encoder, Frame};
use crate::wire::{Event, Lost, Out, PIECE, Sink, Source};

/// How much is written at once.
const BATCH: usize = 64 * 1024;

/// Events out of frames.
#[derive(Debug)]
pub(crate) struct SpdySource<R> {
    reader: R,
    decoder: Decoder,
    /// A frame may say two things: that there is data or a stream, and that
    /// it ends.
    said: VecDeque<Event>,
}

impl<R: AsyncRead + Unpin + Send> SpdySource<R> {
    /// Reads on behind the bytes that came with the request.
    pub(crate) fn new(reader: R, begun: BytesMut) -> Self {
        Self {
            reader,
            decoder: Decoder::new(begun),
            said: VecDeque::new(),
        }
    }

    fn hear(&mut self, frame: Frame) {
        match frame {
            Frame::Open { id, headers, fin } => {
                self.said.push_back(Event::Open { id, headers });
                self.end(id, fin);
            }
            Frame::Data { id, bytes, fin } => {
                if !bytes.is_empty() {
                    self.said.push_back(Event::Data { id, bytes });
                }
                self.end(id, fin);
            }
            Frame::Reset(id) => self.said.push_back(Event::Reset(id)),
            // Even numbers answer pings of the server, which sends none.
            Frame::Ping(id) if id % 2 == 1 => self.said.push_back(Event::Ping(id)),
            Frame::Leave => self.said.push_back(Event::Leave),
            Frame::End(id) => self.end(id, true),
            Frame::Ping(_) | Frame::Other => {}
        }
    }

    fn end(&mut self, id: u32, fin: bool) {
        if fin {
            self.said.push_back(Event::End(id));
        }
    }
}

impl<R: AsyncRead + Unpin + Send> Source for SpdySource<R> {
    async fn next(&mut self) -> Result<Event, Lost> {
        loop {
            if let Some(event) = self.said.pop_front() {
                return Ok(event);
            }
            // A frame of few bytes may be much work, and hundreds come with one read.
            tokio::task::coop::consume_budget().await;
            match self.decoder.next() {
                Ok(Some(frame)) => self.hear(frame),
                Ok(None) => {
                    let space = self.decoder.space();
                    space.reserve(PIECE);
                    if self.reader.read_buf(space).await.map_err(Lost::Read)? == 0 {
                        return Err(Lost::Closed);
                    }
                }
                Err(error) => return Err(Lost::Protocol(Box::new(error))),
            }
        }
    }
}

/// Frames of messages.
#[derive(Debug)]
pub(crate) struct SpdySink<W> {
    writer: W,
    encoder: Encoder,
    bytes: BytesMut,
    last: u32,
}

impl<W: AsyncWrite + Unpin + Send + 'static> SpdySink<W> {
    pub(crate) fn new(writer: W) -> Self {
        Self {
            writer,
            encoder: Encoder::default(),
            bytes: BytesMut::new(),
            last: 0,
        }
    }

    async fn write(&mut self) -> io::Result<()> {
        self.writer.write_all_buf(&mut self.bytes).await
    }
}

impl<W: AsyncWrite + Unpin + Send + 'static> Sink for SpdySink<W> {
    async fn put(&mut self, out: Out) -> io::Result<()> {
        let bytes = &mut self.bytes;
        match out {
            Out::Reply(id) => {
                self.last = self.last.max(id);
                self.encoder.reply(id, bytes);
            }
            Out::Reset(id, reason) => frame::reset(id, reason as u32, bytes),
            Out::Data(id, data) => frame::data(id, &data, false, bytes),
            Out::End(id) => frame::data(id, &[], true, bytes),
            Out::Pong(id) => frame::ping(id, bytes),
            // Go's pings have no deadline.
            Out::Alive => {}
            Out::Close => frame::leave(self.last, bytes),
        }
        if self.bytes.len() >= BATCH {
            self.write().await?;
        }
        Ok(())
    }

    async fn flush(&mut self) -> io::Result<()> {
        self.write().await?;
        if self.bytes.capacity() > BATCH {
            self.bytes = BytesMut::new();
        }
        self.writer.flush().await
    }

    async fn close(&mut self) -> io::Result<()> {
        self.put(Out::Close).await?;
        self.write().await?;
        self.writer.shutdown().await
    }
}

#[cfg(test)]
mod tests {
    use bytes::BufMut as _;

    use super::super::testing::Deflater;
    use super::*;

    /// Each of these few bytes inflates to 64 KiB, and says nothing: a client that sends them
    /// as fast as it can has one thread busy for as long as it is not made to wait.
    #[tokio::test]
    async fn a_flood_of_headers_lets_others_have_their_turn() {
        let mut deflater = Deflater::new();
        let long = "x".repeat(60_000);
        let mut block = || deflater.block(&[("name", &long)]);
        // Nothing in the second one hangs on how often it came before.
        let (first, again) = (block(), block());
        let mut flood = Vec::new();
        for block in std::iter::once(first).chain(std::iter::repeat_n(again, 500)) {
            flood.put_slice(&[0x80, 3, 0, 8, 0, 0]);
            flood.put_u16(4 + block.len() as u16);
            flood.put_u32(1);
            flood.put_slice(&block);
        }
        let mut source = SpdySource::new(&flood[..], BytesMut::new());
        let next = source.next();
        tokio::pin!(next);
        let mut turns = 0;
        while futures::poll!(&mut next).is_pending() {
            turns += 1;
            tokio::task::yield_now().await;
        }
        assert!(turns >= 3, "{turns} turns for 30 MB");
    }
}
