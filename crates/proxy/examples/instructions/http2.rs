//! HTTP/2 as fixed frames: both ends do the least that the protocol allows, so that what they send is always the same.
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

use anyhow::bail;

use crate::WAIT;
use crate::http1::{BODY, HEADERS, PATH};

/// Requests in flight at once.
const STREAMS: usize = 8;

const DATA: u8 = 0;
const HEADERS_FRAME: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

/// A connection that reads frames and writes what was gathered in one go.
struct Frames {
    stream: TcpStream,
    input: Vec<u8>,
    output: Vec<u8>,
}

impl Frames {
    fn new(stream: TcpStream) -> std::io::Result<Self> {
        stream.set_nodelay(true)?;
        let mut frames = Self { stream, input: Vec::new(), output: Vec::new() };
        // Windows so large that none is ever opened again: INITIAL_WINDOW_SIZE, then the connection's own.
        frames.put(SETTINGS, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff]);
        frames.put(8, 0, 0, &(0x7fff_ffff_u32 - 65_535).to_be_bytes());
        Ok(frames)
    }

    fn put(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        self.output.extend_from_slice(&(payload.len() as u32).to_be_bytes()[1..]);
        self.output.extend_from_slice(&[kind, flags]);
        self.output.extend_from_slice(&stream.to_be_bytes());
        self.output.extend_from_slice(payload);
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.stream.write_all(&self.output)?;
        self.output.clear();
        Ok(())
    }

    /// The next frame that has arrived whole, after answering what the connection itself asks.
    fn take(&mut self) -> Option<Frame> {
        loop {
            let head: [u8; 9] = self.input.get(..9)?.try_into().ok()?;
            let [a, b, c, kind, flags, s, t, u, v] = head;
            let end = 9 + u32::from_be_bytes([0, a, b, c]) as usize;
            let payload = self.input.get(9..end)?.to_vec();
            self.input.drain(..end);
            match (kind, flags & ACK) {
                (SETTINGS, 0) => self.put(SETTINGS, ACK, 0, &[]),
                (PING, 0) => self.put(PING, ACK, 0, &payload),
                _ => return Some(Frame { kind, flags, stream: u32::from_be_bytes([s, t, u, v]), payload }),
            }
        }
    }

    fn fill(&mut self) -> anyhow::Result<()> {
        let mut buffer = [0; 32 * 1024];
        let n = self.stream.read(&mut buffer)?;
        anyhow::ensure!(n > 0, "the connection was closed");
        self.input.extend_from_slice(buffer.get(..n).unwrap_or_default());
        Ok(())
    }
}

/// One header block, which the peer's table then holds: name and value as literals with indexing.
fn literals(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0x40);
        for text in [name, value] {
            // Below 127 bytes a length is one byte; none here is longer.
            block.push(text.len() as u8);
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}

/// The same block once it is in the table, whose newest entry is number 62.
fn indexed(fields: usize) -> Vec<u8> {
    (0..fields).map(|i| 0x80 | (62 + fields - 1 - i) as u8).collect()
}

/// Answers every request with 1 KiB.
pub(crate) fn answer(listener: TcpListener) {
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || serve(stream));
        }
    });
}

fn serve(mut stream: TcpStream) -> anyhow::Result<()> {
    let fields = [(":status", "200"), ("content-type", "application/json"), ("content-length", "1024"), ("server", "app")];
    stream.read_exact(&mut [0; 24])?;
    let mut frames = Frames::new(stream)?;
    let mut block = literals(&fields);
    loop {
        while let Some(frame) = frames.take() {
            if frame.kind == HEADERS_FRAME {
                frames.put(HEADERS_FRAME, END_HEADERS, frame.stream, &block);
                frames.put(DATA, END_STREAM, frame.stream, &BODY);
                block = indexed(fields.len());
            }
        }
        frames.flush()?;
        frames.fill()?;
    }
}

/// Sends `requests` on one connection, eight at a time.
pub(crate) fn call(proxy: SocketAddr, requests: usize) -> anyhow::Result<()> {
    let stream = TcpStream::connect(proxy)?;
    stream.set_read_timeout(Some(WAIT))?;
    let mut frames = Frames::new(stream)?;
    frames.output.splice(..0, *b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    let host = crate::config::host(0);
    let mut fields = vec![(":method", "GET"), (":scheme", "http"), (":authority", host.as_str()), (":path", PATH)];
    fields.extend(HEADERS);
    let (mut block, mut id) = (literals(&fields), 1);
    for _ in 0..requests.div_ceil(STREAMS) {
        for _ in 0..STREAMS {
            frames.put(HEADERS_FRAME, END_HEADERS | END_STREAM, id, &block);
            block = indexed(fields.len());
            id += 2;
        }
        frames.flush()?;
        let mut open = STREAMS;
        while open > 0 {
            match frames.take() {
                Some(frame) if matches!(frame.kind, DATA | HEADERS_FRAME) => {
                    open -= usize::from(frame.flags & END_STREAM != 0);
                    // `:status: 200` is number 8 of the fixed table; anything else is not the answer that was asked for.
                    let good = frame.kind == DATA || frame.payload.first() == Some(&0x88);
                    anyhow::ensure!(good, "stream {} was answered {:x?}", frame.stream, frame.payload);
                }
                Some(frame) if frame.kind == GOAWAY => bail!("GOAWAY {:?}", frame.payload),
                Some(_) => {}
                None => frames.fill()?,
            }
        }
    }
    Ok(())
}
