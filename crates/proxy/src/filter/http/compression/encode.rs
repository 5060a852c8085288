//! Compression libraries behind one face. Their state is made for a body that is compressed, and goes with it.
use std::io::Write as _;

use brotli::CompressorWriter;
use brotli::enc::BrotliEncoderParams;
use brotli::enc::backward_references::BrotliEncoderMode;
use bytes::Bytes;
use lateen_snapshot::compression::{BrotliMode, Encoding, GzipStrategy};
use zlib_rs::{Deflate, DeflateConfig, DeflateFlush, Status, Strategy};
use zstd_safe::{CCtx, CParameter, InBuffer, OutBuffer};

use super::PIECE;

/// What a zstd window takes: 1 MiB, below the 8 MiB that every browser accepts (RFC 9659), whatever the level would like.
const ZSTD_WINDOW_LOG: u32 = 20;

/// A body being compressed.
pub(super) enum Encoder {
    Gzip(Box<Deflate>),
    Brotli(Box<CompressorWriter<Vec<u8>>>),
    Zstd(Box<CCtx<'static>>),
}

/// What is done after a piece.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum After {
    /// More of it comes at once.
    More,
    /// The receiver can read all of it.
    Flush,
    /// Nothing comes after it.
    Finish,
}

/// The library failed, which is no fault of the body.
#[derive(Clone, Copy, Debug)]
pub(super) struct Failed;

impl Encoder {
    pub(super) fn new(encoding: &Encoding) -> Result<Self, Failed> {
        Ok(match *encoding {
            Encoding::Gzip { level, window_bits, memory_level, strategy } => {
                let mut config = DeflateConfig::new(i32::from(level));
                // zlib's way to ask for gzip.
                config.window_bits = i32::from(window_bits) + 16;
                config.mem_level = i32::from(memory_level);
                config.strategy = match strategy {
                    GzipStrategy::Default => Strategy::Default,
                    GzipStrategy::Filtered => Strategy::Filtered,
                    GzipStrategy::HuffmanOnly => Strategy::HuffmanOnly,
                    GzipStrategy::Rle => Strategy::Rle,
                    GzipStrategy::Fixed => Strategy::Fixed,
                };
                Self::Gzip(Box::new(Deflate::new_with_config(config)))
            }
            Encoding::Brotli { quality, window_bits, block_bits, mode, literal_context_modeling } => {
                let params = BrotliEncoderParams {
                    quality: i32::from(quality),
                    lgwin: i32::from(window_bits),
                    lgblock: i32::from(block_bits),
                    mode: match mode {
                        BrotliMode::Generic => BrotliEncoderMode::BROTLI_MODE_GENERIC,
                        BrotliMode::Text => BrotliEncoderMode::BROTLI_MODE_TEXT,
                        BrotliMode::Font => BrotliEncoderMode::BROTLI_MODE_FONT,
                    },
                    disable_literal_context_modeling: i32::from(!literal_context_modeling),
                    ..BrotliEncoderParams::default()
                };
                Self::Brotli(Box::new(CompressorWriter::with_params(Vec::new(), 4096, &params)))
            }
            Encoding::Zstd { level, checksum, strategy } => {
                let mut context = CCtx::try_create().ok_or(Failed)?;
                let mut set = |parameter| context.set_parameter(parameter).map_err(|_| Failed);
                set(CParameter::CompressionLevel(i32::from(level)))?;
                set(CParameter::WindowLog(ZSTD_WINDOW_LOG))?;
                set(CParameter::ChecksumFlag(checksum))?;
                if let Some(strategy) = zstd_strategy(strategy) {
                    set(CParameter::Strategy(strategy))?;
                }
                Self::Zstd(Box::new(context))
            }
        })
    }

    /// Compresses a piece of at most [`PIECE`] bytes.
    pub(super) fn encode(&mut self, data: &[u8], after: After) -> Result<Bytes, Failed> {
        match self {
            Self::Gzip(deflate) => gzip(deflate, data, after),
            Self::Brotli(writer) => {
                writer.write_all(data).map_err(|_| Failed)?;
                match after {
                    After::More => Ok(Bytes::from(std::mem::take(writer.get_mut()))),
                    After::Flush => {
                        writer.flush().map_err(|_| Failed)?;
                        Ok(Bytes::from(std::mem::take(writer.get_mut())))
                    }
                    After::Finish => {
                        let spent = std::mem::replace(&mut **writer, CompressorWriter::new(Vec::new(), 1, 0, 10));
                        Ok(Bytes::from(spent.into_inner()))
                    }
                }
            }
            Self::Zstd(context) => zstd(context, data, after),
        }
    }
}

fn gzip(deflate: &mut Deflate, mut data: &[u8], after: After) -> Result<Bytes, Failed> {
    let flush = match after {
        After::More => DeflateFlush::NoFlush,
        After::Flush => DeflateFlush::SyncFlush,
        After::Finish => DeflateFlush::Finish,
    };
    let mut out = Vec::with_capacity(data.len() / 2 + 64);
    let mut buffer = [0; 4096];
    loop {
        let (read, written) = (deflate.total_in(), deflate.total_out());
        let status = deflate.compress(data, &mut buffer, flush).map_err(|_| Failed)?;
        let (read, written) = ((deflate.total_in() - read) as usize, (deflate.total_out() - written) as usize);
        data = data.get(read..).unwrap_or_default();
        out.extend_from_slice(buffer.get(..written).unwrap_or_default());
        let over = match after {
            After::Finish => status == Status::StreamEnd,
            // Room was left: nothing more waits inside.
            _ => data.is_empty() && written < buffer.len(),
        };
        if over || (read == 0 && written == 0) {
            return Ok(Bytes::from(out));
        }
    }
}

fn zstd(context: &mut CCtx<'static>, data: &[u8], after: After) -> Result<Bytes, Failed> {
    let mut out: Vec<u8> = Vec::with_capacity(zstd_safe::compress_bound(data.len()) + 64);
    let mut input = InBuffer::around(data);
    loop {
        out.reserve(4096);
        let at = out.len();
        let mut output = OutBuffer::around_pos(&mut out, at);
        let left = match after {
            _ if input.pos() < data.len() => context.compress_stream(&mut output, &mut input).map(|_| 1),
            After::More => Ok(0),
            After::Flush => context.flush_stream(&mut output),
            After::Finish => context.end_stream(&mut output),
        };
        if left.map_err(|_| Failed)? == 0 {
            return Ok(Bytes::from(out));
        }
    }
}

/// `None` leaves the choice to the level.
fn zstd_strategy(number: u8) -> Option<zstd_safe::Strategy> {
    use zstd_safe::Strategy as S;
    Some(match number {
        1 => S::ZSTD_fast,
        2 => S::ZSTD_dfast,
        3 => S::ZSTD_greedy,
        4 => S::ZSTD_lazy,
        5 => S::ZSTD_lazy2,
        6 => S::ZSTD_btlazy2,
        7 => S::ZSTD_btopt,
        8 => S::ZSTD_btultra,
        9 => S::ZSTD_btultra2,
        _ => return None,
    })
}

/// `data` in pieces that [`Encoder::encode`] takes.
pub(super) fn next_piece(data: &mut Bytes) -> Bytes {
    data.split_to(data.len().min(PIECE))
}
