//! HTTP/2, both sides: the proxy's messages on the streams of `lateen-http2`.
mod client;
mod keepalive;
mod serve;
mod server;
mod streams;

pub(crate) use client::H2Client;
pub(crate) use keepalive::Keepalive;
pub(crate) use serve::serve;
pub(crate) use server::H2ServerStream;
use server::{mark, request_of};

use lateen_http2::Reason;
use lateen_http2::shell::{Failure, Piece};

use super::message::Frame;
use super::stream::StreamError;

impl From<Failure> for StreamError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Refused => Self::Refused,
            Failure::Reset(Reason::PROTOCOL_ERROR | Reason::FRAME_SIZE_ERROR | Reason::COMPRESSION_ERROR) => Self::Protocol,
            Failure::Reset(_) => Self::Reset,
            Failure::Closed => Self::Closed,
        }
    }
}

fn frame(piece: Result<Piece, Failure>) -> Result<Frame, StreamError> {
    match piece? {
        Piece::Data(data) => Ok(Frame::Data(data)),
        Piece::Trailers(trailers) => Ok(Frame::Trailers(trailers)),
    }
}
