//! The end of a connection that its peer may still be reading from, and writing to.
use std::time::Duration;

use lateen_core::recycle::buffers;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::Io;

/// How long the last bytes may wait to be written where nobody waits for the peer.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// How long a peer that takes nothing may hold up the end of its connection, where so long is waited for what it still sends.
pub(crate) fn last_words(patience: Duration) -> Duration {
    if patience.is_zero() { LAST_WORDS } else { patience }
}

/// Ends a connection on which all was said such that the peer gets it; with no patience it is closed at once.
pub(crate) async fn leave(io: &mut Io, patience: Duration) {
    let told = tokio::time::timeout(last_words(patience), io.shutdown()).await;
    if matches!(told, Ok(Ok(()))) && !patience.is_zero() {
        linger(io, patience).await;
    }
}

/// Takes what a peer still sends that has been told the end, until it ends too, and for so long at most: the kernel would
/// otherwise answer with a reset, which may overtake what the peer was sent.
pub(crate) async fn linger(io: &mut Io, patience: Duration) {
    let mut rest = buffers::take();
    let until_the_end = async {
        loop {
            rest.clear();
            if !matches!(io.read_buf(&mut rest).await, Ok(1..)) {
                break;
            }
        }
    };
    let _ = tokio::time::timeout(patience, until_the_end).await;
}
