//! Decompression libraries behind one face: output comes a buffer at a time, and never more than a ratio allows.
use brotli::enc::StandardAlloc;
use brotli::{BrotliDecompressStream, BrotliResult, BrotliState};
use lateen_snapshot::compression::Decoding;
use zlib_rs::{Inflate, InflateFlush, Status};
use zstd_safe::{DCtx, DParameter, InBuffer, OutBuffer};

/// The largest window that a body may ask for: what RFC 9659 lets a sender use.
const ZSTD_WINDOW_LOG: u32 = 23;

type Brotli = BrotliState<StandardAlloc, StandardAlloc, StandardAlloc>;

/// A body being decompressed.
pub(super) struct Decoder {
    library: Library,
    started: bool,
    /// Whether a whole number of streams has been read: nothing is missing.
    complete: bool,
}

enum Library {
    Gzip(Box<Inflate>, u8),
    Brotli(Box<Brotli>),
    Zstd(Box<DCtx<'static>>),
}

/// The bytes are not what they are said to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Nonsense;

/// What one step did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) read: usize,
    pub(super) written: usize,
}

impl Decoder {
    pub(super) fn new(decoding: Decoding) -> Result<Self, Nonsense> {
        let library = match decoding {
            Decoding::Gzip { window_bits, .. } => Library::Gzip(Box::new(inflate(window_bits)), window_bits),
            Decoding::Brotli => {
                let alloc = StandardAlloc::default;
                Library::Brotli(Box::new(BrotliState::new(alloc(), alloc(), alloc())))
            }
            Decoding::Zstd => {
                let mut context = DCtx::try_create().ok_or(Nonsense)?;
                context.set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW_LOG)).map_err(|_| Nonsense)?;
                Library::Zstd(Box::new(context))
            }
        };
        Ok(Self { library, started: false, complete: true })
    }

    /// Whether a body may end here.
    pub(super) fn is_complete(&self) -> bool {
        self.complete
    }

    /// Fills `output` from `input` as far as either goes. When it did nothing, more input is needed.
    pub(super) fn decode(&mut self, input: &[u8], output: &mut [u8]) -> Result<Step, Nonsense> {
        if input.is_empty() && self.complete {
            return Ok(Step { read: 0, written: 0 });
        }
        let again = self.started && self.complete;
        self.started = true;
        match &mut self.library {
            Library::Gzip(stream, window_bits) => {
                // A file may be several, one after the other (RFC 1952 2.2).
                if again {
                    **stream = inflate(*window_bits);
                }
                let (read, written) = (stream.total_in(), stream.total_out());
                let status = stream.decompress(input, output, InflateFlush::NoFlush).map_err(|_| Nonsense)?;
                self.complete = status == Status::StreamEnd;
                Ok(Step { read: (stream.total_in() - read) as usize, written: (stream.total_out() - written) as usize })
            }
            Library::Brotli(state) => {
                // After its end there is nothing.
                if again {
                    return Err(Nonsense);
                }
                let (mut available, mut read, mut room, mut written, mut total) = (input.len(), 0, output.len(), 0, 0);
                let result = BrotliDecompressStream(&mut available, &mut read, input, &mut room, &mut written, output, &mut total, state);
                self.complete = match result {
                    BrotliResult::ResultSuccess => true,
                    BrotliResult::NeedsMoreInput | BrotliResult::NeedsMoreOutput => false,
                    BrotliResult::ResultFailure => return Err(Nonsense),
                };
                Ok(Step { read, written })
            }
            Library::Zstd(context) => {
                let (mut source, mut target) = (InBuffer::around(input), OutBuffer::around(output));
                let left = context.decompress_stream(&mut target, &mut source).map_err(|_| Nonsense)?;
                let written = target.pos();
                // A frame's end.
                self.complete = left == 0;
                Ok(Step { read: source.pos(), written })
            }
        }
    }
}

fn inflate(window_bits: u8) -> Inflate {
    // zlib's way to ask for gzip.
    Inflate::new(true, window_bits + 16)
}
