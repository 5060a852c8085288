//! Callers that leave, or end their side, while what they wait for is not there yet.
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::AsyncReadExt;

use crate::io::Io;

/// So much is read of a caller that waits.
const MOST_AHEAD: usize = 64 << 10;

#[derive(PartialEq, Eq)]
enum Left {
    /// It ended its side, and may yet wait for an answer.
    Half,
    Gone,
}

/// Comes back when the caller has left, and keeps what it says until then, up to a limit. One that ends its side after it said
/// something may yet wait for an answer.
pub(super) async fn leaves(io: &mut Io, first: &mut BytesMut) {
    if left(io, first).await == Left::Half && !first.is_empty() {
        std::future::pending().await
    }
}

/// As [`leaves`], but one that ends its side has only so much time from then on: most of those have hung up.
pub(super) async fn leaves_within(patience: Duration, io: &mut Io, first: &mut BytesMut) {
    if left(io, first).await == Left::Half {
        tokio::time::sleep(patience).await;
    }
}

async fn left(io: &mut Io, first: &mut BytesMut) -> Left {
    if first.capacity() == 0 {
        *first = lateen_core::recycle::buffers::take();
    }
    while first.len() < MOST_AHEAD {
        match io.read_buf(first).await {
            Ok(0) => return Left::Half,
            Ok(_) => {}
            Err(_) => return Left::Gone,
        }
    }
    std::future::pending().await
}
