//! Lists as streams: the same lines in messages of bounded size, so that no list is too
//! long for its client, which takes 16 MiB as one message.

use prost::Message;
use tokio_stream::iter;

use super::Streamed;

/// Bytes of one message, more or less: a line is never cut.
const BYTES: usize = 1 << 20;
/// Lines of one message.
const LINES: usize = 256;

/// A stream of messages that `wrap` makes of some lines each.
pub(super) fn of<L, M>(lines: Vec<L>, wrap: impl Fn(Vec<L>) -> M) -> Streamed<M>
where
    L: Message,
    M: Send + 'static,
{
    let mut pieces = Vec::new();
    let (mut piece, mut bytes) = (Vec::new(), 0);
    for line in lines {
        let length = line.encoded_len();
        if !piece.is_empty() && (bytes + length > BYTES || piece.len() == LINES) {
            pieces.push(Ok(wrap(std::mem::take(&mut piece))));
            bytes = 0;
        }
        bytes += length;
        piece.push(line);
    }
    if !piece.is_empty() {
        pieces.push(Ok(wrap(piece)));
    }
    Box::pin(iter(pieces))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::v1;
    use tokio_stream::StreamExt;

    async fn sizes(lines: Vec<v1::Image>) -> Vec<usize> {
        let stream = of(lines, |images| v1::StreamImagesResponse { images });
        let sizes = stream.map(|piece| piece.expect("a piece").images.len());
        sizes.collect().await
    }

    #[tokio::test]
    async fn pieces_are_bounded_by_bytes_and_by_lines() {
        assert_eq!(sizes(Vec::new()).await, Vec::<usize>::new());
        let small = vec![v1::Image::default(); 2 * LINES + 1];
        assert_eq!(sizes(small).await, [LINES, LINES, 1]);
        let large = v1::Image {
            username: "x".repeat(BYTES * 2 / 3),
            ..v1::Image::default()
        };
        assert_eq!(sizes(vec![large; 3]).await, [1, 1, 1]);
        let huge = v1::Image {
            username: "x".repeat(2 * BYTES),
            ..v1::Image::default()
        };
        assert_eq!(sizes(vec![huge, v1::Image::default()]).await, [1, 1]);
    }
}
