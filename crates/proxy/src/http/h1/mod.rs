//! HTTP/1, both sides. Strict where leniency lets requests be smuggled: every rule names what it prevents.
mod body;
mod client;
mod encode;
mod names;
mod parse;
mod server;
mod spelling;

pub(crate) use body::Decoder;
pub(crate) use client::H1Client;
pub(crate) use parse::{HeadLimits, InvalidHead, valid_host};
pub(crate) use server::{H1Server, NoRequest};
pub(crate) use spelling::Spelling;
