//! Limits on what a peer may provoke with cheap frames.
//!
//! All are ratios to useful work, so that hardly a clock is needed; numbers are Envoy's defaults
//! (protocol.proto `max_outbound_control_frames`, `max_inbound_window_update_frames_per_data_frame_sent`,
//! `max_inbound_priority_frames_per_stream`; runtime `overload.premature_reset_total_stream_count`).
use crate::event::ConnectionError;

const MAX_UNREAD_CONTROL: u32 = 1000;
const MAX_EMPTY_IN_A_ROW: u32 = 10;
const PRIORITY_PER_STREAM: u64 = 100;
const UPDATES_PER_DATA: u64 = 10;
const PREMATURE_RESETS: u64 = 500;

/// Counters of one connection.
#[derive(Debug, Default)]
pub(crate) struct Flood {
    /// Control frames written since the output was last empty.
    unread_control: u32,
    empty_in_a_row: u32,
    priorities: u64,
    updates: u64,
    pub(crate) data_frames_sent: u64,
    pub(crate) streams: u64,
    premature_resets: u64,
}

impl Flood {
    /// We had to answer with a control frame; the peer may not be reading.
    pub(crate) fn control_frame(&mut self) -> Result<(), ConnectionError> {
        self.unread_control += 1;
        allow(self.unread_control <= MAX_UNREAD_CONTROL, "too many unread control frames")
    }

    pub(crate) fn drained(&mut self) {
        self.unread_control = 0;
    }

    pub(crate) fn payload(&mut self, empty: bool) -> Result<(), ConnectionError> {
        self.empty_in_a_row = if empty { self.empty_in_a_row + 1 } else { 0 };
        allow(self.empty_in_a_row <= MAX_EMPTY_IN_A_ROW, "too many empty frames in a row")
    }

    pub(crate) fn priority(&mut self) -> Result<(), ConnectionError> {
        self.priorities += 1;
        allow(self.priorities <= PRIORITY_PER_STREAM * (1 + self.streams), "too many PRIORITY frames")
    }

    pub(crate) fn window_update(&mut self) -> Result<(), ConnectionError> {
        self.updates += 1;
        let limit = 5 + 2 * (self.streams + UPDATES_PER_DATA * self.data_frames_sent);
        allow(self.updates <= limit, "too many WINDOW_UPDATE frames")
    }

    /// A stream was reset before it could be answered, by the peer or by its fault (rapid reset, MadeYouReset).
    pub(crate) fn premature_reset(&mut self) -> Result<(), ConnectionError> {
        self.premature_resets += 1;
        let flood = self.premature_resets > PREMATURE_RESETS && self.premature_resets * 2 > self.streams;
        allow(!flood, "too many streams reset before they were answered")
    }
}

fn allow(fine: bool, text: &'static str) -> Result<(), ConnectionError> {
    if fine { Ok(()) } else { Err(ConnectionError::calm(text)) }
}
