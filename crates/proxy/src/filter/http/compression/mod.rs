//! Bodies made smaller and larger: the compressor and decompressor filters, and the libraries behind them.
pub(super) mod compressor;
mod decode;
pub(super) mod decompressor;
mod encode;

use http::HeaderMap;
use http::header::CACHE_CONTROL;

/// Input and output go through the libraries in pieces of this size at most.
const PIECE: usize = 32 * 1024;

/// Whether `cache-control` forbids to touch the body.
fn forbids_transform(map: &HeaderMap) -> bool {
    let values = map.get_all(CACHE_CONTROL).iter().filter_map(|v| v.to_str().ok());
    values.flat_map(|v| v.split(',')).any(|token| token.trim().eq_ignore_ascii_case("no-transform"))
}
