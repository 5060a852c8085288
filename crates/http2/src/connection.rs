//! A connection: its windows, its streams, and what the shell does to it.
use std::collections::HashMap;
use std::hash::BuildHasherDefault;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, StatusCode};

use crate::StreamId;
use crate::event::{ConnectionError, RequestRef};
use crate::flood::Flood;
use crate::frame::{self, Reason, flag, kind, setting};
use crate::hpack::{Decoder, Encoder};
use crate::output::Output;
use crate::stream::{IdHasher, Stream, Streams};
use crate::window::Queue;

/// The frame size that everyone accepts, and the largest we send or take.
pub(crate) const FRAME: usize = 16_384;
/// The window both sides start with (RFC 9113, section 6.9.2).
pub(crate) const FIRST_WINDOW: u32 = 65_535;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Server,
    Client,
}

/// Limits of a connection.
#[derive(Clone, Debug)]
pub struct Config {
    /// Streams a client may have open at once.
    pub max_concurrent_streams: u32,
    /// Bytes in flight per stream; at least 65,535.
    pub stream_window: u32,
    /// Bytes in flight for the connection; at least 65,535.
    pub connection_window: u32,
    /// Decoded size of a header block: names, values and 32 for each field.
    pub max_header_bytes: usize,
    pub max_headers: usize,
    /// Announce and take extended CONNECT (RFC 8441).
    pub extended_connect: bool,
    /// What the user of the connection wants to know about names of headers: asked when a name is first sent, so that it
    /// need not look at every header of every request. [`crate::RequestHead::marks`] are the marks of all names, or-ed.
    pub mark: fn(&[u8]) -> u8,
}

impl Default for Config {
    /// 60 KiB and 100 headers as Envoy; windows of 256 KiB and 1 MiB.
    fn default() -> Self {
        Self {
            max_concurrent_streams: 1024,
            stream_window: 1 << 18,
            connection_window: 1 << 20,
            max_header_bytes: 60 << 10,
            max_headers: 100,
            extended_connect: false,
            mark: |_| 0,
        }
    }
}

/// What the peer's SETTINGS say.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) max_concurrent_streams: u32,
    pub(crate) initial_window: u32,
    pub(crate) extended_connect: bool,
}

/// A header block whose CONTINUATION frames are still coming.
pub(crate) struct Partial {
    pub(crate) stream: StreamId,
    pub(crate) end_stream: bool,
    pub(crate) block: BytesMut,
    pub(crate) frames: u32,
}

/// Why a stream cannot be opened now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The peer's limit of concurrent streams is reached; later it may work.
    Full,
    /// The connection is going away: use another.
    Closing,
}

/// One HTTP/2 connection, either side.
pub struct Connection {
    pub(crate) role: Role,
    pub(crate) config: Config,
    pub(crate) encoder: Encoder,
    pub(crate) decoder: Decoder,
    pub(crate) out: Output,
    pub(crate) streams: Streams,
    /// Bytes of streams that are over which nobody has taken yet: until then they count against the connection's window,
    /// or whoever asks for much and reads nothing would have us keep it all.
    unread: HashMap<StreamId, u32, BuildHasherDefault<IdHasher>>,
    pub(crate) peer: Peer,
    pub(crate) send_window: i64,
    pub(crate) receive_window: i64,
    pub(crate) released: u32,
    /// The next id we open (client), the highest the peer opened (server).
    pub(crate) next_id: StreamId,
    pub(crate) last_peer_id: StreamId,
    pub(crate) partial: Option<Partial>,
    pub(crate) preface_left: usize,
    pub(crate) settings_seen: bool,
    pub(crate) going_away: Option<StreamId>,
    pub(crate) peer_going_away: bool,
    pub(crate) dead: bool,
    pub(crate) flood: Flood,
    /// The shell's time in milliseconds, from any beginning and any number of times around.
    pub(crate) moment: u32,
    pub(crate) waiting: Queue,
    /// Scratch for header blocks: they are framed after they are encoded.
    block: Vec<u8>,
}

impl Connection {
    /// The server's side; its SETTINGS are in the output at once.
    pub fn server(config: Config) -> Self {
        Self::new(Role::Server, config)
    }

    /// The client's side; preface and SETTINGS are in the output at once.
    pub fn client(config: Config) -> Self {
        Self::new(Role::Client, config)
    }

    fn new(role: Role, config: Config) -> Self {
        let window = config.connection_window.clamp(FIRST_WINDOW, i32::MAX as u32);
        let config =
            Config { connection_window: window, stream_window: config.stream_window.clamp(FIRST_WINDOW, i32::MAX as u32), ..config };
        let mut connection = Self {
            role,
            encoder: Encoder::new(),
            decoder: Decoder::new(4096, config.max_header_bytes, config.max_headers, config.mark),
            out: Output::default(),
            streams: Streams::default(),
            unread: HashMap::default(),
            // Before its SETTINGS say otherwise a peer has no limit (RFC 9113, section 6.5.2).
            peer: Peer { max_concurrent_streams: u32::MAX, initial_window: FIRST_WINDOW, extended_connect: false },
            send_window: i64::from(FIRST_WINDOW),
            receive_window: i64::from(window),
            released: 0,
            next_id: 1,
            last_peer_id: 0,
            partial: None,
            preface_left: if role == Role::Server { frame::PREFACE.len() } else { 0 },
            settings_seen: false,
            going_away: None,
            peer_going_away: false,
            dead: false,
            flood: Flood::default(),
            moment: 0,
            waiting: Queue::default(),
            block: Vec::new(),
            config,
        };
        connection.greet();
        connection
    }

    fn greet(&mut self) {
        let out = self.out.buffer();
        if self.role == Role::Client {
            out.extend_from_slice(frame::PREFACE);
        }
        let mut settings = vec![
            (setting::INITIAL_WINDOW_SIZE, self.config.stream_window),
            (setting::MAX_HEADER_LIST_SIZE, u32::try_from(self.config.max_header_bytes).unwrap_or(u32::MAX)),
        ];
        match self.role {
            Role::Server => settings.push((setting::MAX_CONCURRENT_STREAMS, self.config.max_concurrent_streams)),
            Role::Client => settings.push((setting::ENABLE_PUSH, 0)),
        }
        if self.config.extended_connect && self.role == Role::Server {
            settings.push((setting::ENABLE_CONNECT_PROTOCOL, 1));
        }
        frame::put_settings(out, &settings);
        if self.config.connection_window > FIRST_WINDOW {
            frame::put_window_update(out, 0, self.config.connection_window - FIRST_WINDOW);
        }
    }

    /// What waits to be written. Call [`Self::written`] with what was.
    pub fn output(&self) -> &Output {
        &self.out
    }

    /// Takes note that `count` bytes of the output were written.
    pub fn written(&mut self, count: usize) {
        self.out.advance(count);
        if self.out.is_empty() {
            self.flood.drained();
        }
    }

    /// Tells a server the time, in milliseconds from any beginning: streams that are reset are judged by how long they lasted.
    pub fn set_moment(&mut self, millis: u32) {
        self.moment = millis;
    }

    /// Whether a stream could be opened now.
    pub fn can_open(&self) -> Result<(), Refused> {
        if self.dead || self.peer_going_away || self.going_away.is_some() || self.next_id > i32::MAX as u32 - 2 {
            return Err(Refused::Closing);
        }
        if self.streams.len() >= self.peer.max_concurrent_streams as usize { Err(Refused::Full) } else { Ok(()) }
    }

    /// How many streams the peer takes at once.
    pub fn peer_limit(&self) -> u32 {
        self.peer.max_concurrent_streams
    }

    /// Streams open now.
    pub fn open_streams(&self) -> usize {
        self.streams.len()
    }

    /// Whether the peer's SETTINGS have come.
    pub fn is_ready(&self) -> bool {
        self.settings_seen
    }

    /// Whether the peer takes extended CONNECT.
    pub fn peer_takes_extended_connect(&self) -> bool {
        self.peer.extended_connect
    }

    /// Opens a stream with a request; `end` when no body follows.
    ///
    /// # Errors
    /// When the peer takes no more streams, now or ever.
    pub fn send_request(&mut self, head: RequestRef<'_>, end: bool) -> Result<StreamId, Refused> {
        self.can_open()?;
        let id = self.next_id;
        self.next_id += 2;
        let mut block = std::mem::take(&mut self.block);
        self.encoder.begin(&mut block);
        self.encoder.method(head.method, &mut block);
        if *head.method != Method::CONNECT || head.protocol.is_some() {
            self.encoder.scheme(head.scheme, &mut block);
            self.encoder.pseudo(b":path", head.path, &mut block);
        }
        if !head.authority.is_empty() {
            self.encoder.pseudo(b":authority", head.authority, &mut block);
        }
        if let Some(protocol) = head.protocol {
            self.encoder.pseudo(b":protocol", protocol, &mut block);
        }
        self.encoder.headers(head.headers, &mut block);
        for (name, value) in head.more {
            self.encoder.pseudo(name.as_bytes(), value, &mut block);
        }
        let mut stream = Stream::new(self.peer.initial_window, self.config.stream_window);
        stream.sending = !end;
        stream.bodiless = *head.method == Method::HEAD;
        self.streams.insert(id, stream);
        self.flood.streams += 1;
        self.put_block(id, block, end);
        Ok(id)
    }

    /// Answers a request; `end` when no body follows. Nothing happens when the stream is gone.
    pub fn send_response(&mut self, id: StreamId, status: StatusCode, headers: &HeaderMap, end: bool) {
        let Some(stream) = self.streams.get_mut(&id).filter(|s| s.sending) else { return };
        stream.answered |= !status.is_informational();
        let mut block = std::mem::take(&mut self.block);
        self.encoder.begin(&mut block);
        self.encoder.status(status, &mut block);
        self.encoder.headers(headers, &mut block);
        self.put_block(id, block, end);
        if end {
            self.finish_sending(id);
        }
    }

    /// Ends the stream's body with trailers.
    pub fn send_trailers(&mut self, id: StreamId, headers: &HeaderMap) {
        if self.streams.get(&id).is_none_or(|s| !s.sending) {
            return;
        }
        if headers.is_empty() {
            return self.put_end(id);
        }
        let mut block = std::mem::take(&mut self.block);
        self.encoder.begin_trailers(&mut block);
        self.encoder.headers(headers, &mut block);
        self.put_block(id, block, true);
        self.finish_sending(id);
    }

    /// Sends as much of `data` as the windows allow and leaves the rest in it; true when all went and,
    /// with `end`, the stream's sending side is closed. What is left may follow after [`crate::Event::Capacity`].
    /// On a stream that is gone the data are dropped.
    pub fn send_data(&mut self, id: StreamId, data: &mut Bytes, end: bool) -> bool {
        let Some(stream) = self.streams.get_mut(&id).filter(|s| s.sending) else {
            data.clear();
            return true;
        };
        let allowed = self.waiting.allowed(self.send_window, stream).min(stream.send_window);
        let mut allowed = usize::try_from(allowed).unwrap_or(0);
        self.waiting.settle(stream);
        while !data.is_empty() {
            let size = data.len().min(FRAME).min(allowed);
            if size == 0 {
                self.waiting.wait(id, stream, data.len());
                return false;
            }
            let part = data.split_to(size);
            let last = end && data.is_empty();
            allowed -= size;
            stream.send_window -= size as i64;
            self.send_window -= size as i64;
            self.flood.data_frames_sent += 1;
            self.out.data(id, part, last);
            if last {
                self.finish_sending(id);
                return true;
            }
        }
        if end {
            self.put_end(id);
        }
        true
    }

    /// The shell is done with `count` bytes of the stream's body: the peer may send as many again.
    pub fn release(&mut self, id: StreamId, count: usize) {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        let Some(stream) = self.streams.get_mut(&id) else { return self.release_unread(id, count) };
        let count = count.min(stream.outstanding);
        stream.outstanding -= count;
        stream.released += count;
        if stream.receiving && stream.released >= self.config.stream_window / 2 {
            stream.receive_window += i64::from(stream.released);
            frame::put_window_update(self.out.buffer(), id, stream.released);
            stream.released = 0;
        }
        self.release_connection(count);
    }

    /// The shell is done with all of a stream's body, also what it has not taken.
    pub fn discard(&mut self, id: StreamId) {
        self.release(id, usize::MAX);
    }

    /// Ends a stream at once, in both directions.
    pub fn reset(&mut self, id: StreamId, reason: Reason) {
        if self.forget(id) {
            frame::put_reset(self.out.buffer(), id, reason);
        }
    }

    /// Ends the connection gracefully: the peer is told that streams after those seen are refused;
    /// open ones go on.
    pub fn go_away(&mut self, reason: Reason) {
        if self.going_away.is_none() && !self.dead {
            self.going_away = Some(self.last_peer_id);
            frame::put_goaway(self.out.buffer(), self.last_peer_id, reason, "");
        }
    }

    /// Asks the peer to open no more streams without refusing those that are on their way: the first half
    /// of a graceful shutdown. Follow with [`Self::go_away`] when a round trip has passed.
    pub fn announce_shutdown(&mut self) {
        if self.going_away.is_none() && !self.dead {
            frame::put_goaway(self.out.buffer(), i32::MAX as u32, Reason::NO_ERROR, "");
        }
    }

    /// Whether the connection has nothing left to do but to write its output and close.
    pub fn is_finished(&self) -> bool {
        self.dead || ((self.going_away.is_some() || self.peer_going_away) && self.streams.is_empty())
    }

    /// Whether the peer broke the connection: only the GOAWAY that says so is left to write.
    pub fn is_broken(&self) -> bool {
        self.dead
    }

    /// Asks the peer for a sign of life: [`crate::Event::Pong`].
    pub fn ping(&mut self) {
        frame::put_ping(self.out.buffer(), false, *b"lateen..");
    }

    pub(crate) fn release_connection(&mut self, count: u32) {
        self.released += count;
        if self.released >= self.config.connection_window / 2 {
            self.receive_window += i64::from(self.released);
            frame::put_window_update(self.out.buffer(), 0, self.released);
            self.released = 0;
        }
    }

    fn release_unread(&mut self, id: StreamId, count: u32) {
        let Some(left) = self.unread.get_mut(&id) else { return };
        let count = count.min(*left);
        *left -= count;
        if *left == 0 {
            self.unread.remove(&id);
        }
        self.release_connection(count);
    }

    /// Takes the stream out of the table. True when it was there.
    pub(crate) fn forget(&mut self, id: StreamId) -> bool {
        let Some(mut stream) = self.streams.remove(&id) else { return false };
        if stream.outstanding > 0 {
            self.unread.insert(id, stream.outstanding);
        }
        self.waiting.settle(&mut stream);
        if stream.queued {
            self.waiting.tidy(&self.streams);
        }
        true
    }

    fn put_end(&mut self, id: StreamId) {
        self.out.end(id);
        self.finish_sending(id);
    }

    fn finish_sending(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.sending = false;
        if !stream.receiving {
            self.forget(id);
        }
    }

    /// Frames an encoded block as HEADERS and, when it is long, CONTINUATIONs. Gives the scratch back.
    fn put_block(&mut self, id: StreamId, mut block: Vec<u8>, end: bool) {
        let out = self.out.buffer();
        let mut flags = if end { flag::END_STREAM } else { 0 };
        let mut kind = kind::HEADERS;
        let mut rest = &block[..];
        loop {
            let (part, after) = rest.split_at(rest.len().min(FRAME));
            if after.is_empty() {
                flags |= flag::END_HEADERS;
            }
            frame::put_head(out, part.len(), kind, flags, id);
            out.extend_from_slice(part);
            if after.is_empty() {
                break;
            }
            (rest, kind, flags) = (after, kind::CONTINUATION, 0);
        }
        block.clear();
        self.block = block;
    }

    /// Puts the GOAWAY of a broken connection into the output.
    pub(crate) fn die(&mut self, error: &ConnectionError) {
        if !self.dead {
            self.dead = true;
            frame::put_goaway(self.out.buffer(), self.last_peer_id, error.reason, error.text);
        }
    }
}
