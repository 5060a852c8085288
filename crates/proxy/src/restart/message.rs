//! What parent and child say to each other: the child asks, the parent answers, one message after the other.
use lateen_telemetry::stats::{Figures, Series};
use serde::{Deserialize, Serialize};

/// Processes of different versions cannot follow one another.
pub(super) const VERSION: u32 = 1;
/// The largest message, in bytes.
pub(super) const MOST_BYTES: usize = 64 << 10;
/// The most descriptors that come with a message.
pub(super) const MOST_SOCKETS: usize = 64;
/// The most sockets altogether.
pub(super) const MOST_SOCKETS_ALTOGETHER: usize = 65_536;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Ask {
    Hello {
        version: u32,
        epoch: u64,
    },
    /// The next listening sockets.
    Sockets,
    /// The child accepts; the parent is to leave and may go on for this long at most.
    Serving {
        parent_shutdown_ms: u64,
    },
    /// What was counted since the last time. Asked now and then also before the hand-over, to show that the child lives.
    Figures,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Answer {
    Welcome {
        epoch: u64,
        generation: u64,
        first_started_ms: u64,
    },
    /// No; the connection ends.
    Refused {
        reason: String,
    },
    /// One for each descriptor that comes along.
    Sockets {
        sockets: Vec<SocketName>,
        more: bool,
    },
    Leaving,
    Figures(Piece),
}

/// Which socket a descriptor is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum SocketName {
    /// One of the sockets of this address; each worker has one or more.
    Listener { address: std::net::SocketAddr, number: u32 },
    /// `admin`, `health`, `statistics`, `agent`.
    Port { name: String },
}

type Labels = Vec<(String, String)>;

/// Figures, as much as fits into a message.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Piece {
    pub(super) counters: Vec<(String, u64)>,
    pub(super) series: Vec<(String, String, Labels, u64)>,
    pub(super) gauges: Vec<(String, u64)>,
    pub(super) connections: u64,
    /// The rest comes with the next answer.
    pub(super) more: bool,
    /// The parent has nothing open any more and ends.
    pub(super) last: bool,
}

/// Room that numbers and punctuation of an entry take in JSON.
const AROUND: usize = 48;

impl Piece {
    /// Cuts figures such that each piece fits. An entry that does not fit at all is left out.
    pub(super) fn cut(figures: Figures, connections: u64, last: bool) -> Vec<Self> {
        let mut cutter = Cutter { done: Vec::new(), piece: Self::default(), size: 0 };
        for (name, by) in figures.counters {
            cutter.put(escaped(&name), |piece| piece.counters.push((name, by)));
        }
        for Series { name, family, labels, by } in figures.series {
            let labels_size: usize = labels.iter().map(|(key, value)| escaped(key) + escaped(value) + AROUND).sum();
            cutter.put(escaped(&name) + escaped(&family) + labels_size, |piece| piece.series.push((name, family, labels, by)));
        }
        for (name, value) in figures.gauges {
            cutter.put(escaped(&name), |piece| piece.gauges.push((name, value)));
        }
        let Cutter { mut done, piece, .. } = cutter;
        done.iter_mut().for_each(|piece| piece.more = true);
        done.push(piece);
        for piece in &mut done {
            (piece.connections, piece.last) = (connections, last);
        }
        done
    }

    pub(super) fn add_to(self, figures: &mut Figures) {
        figures.counters.extend(self.counters);
        figures.gauges.extend(self.gauges);
        figures.series.extend(self.series.into_iter().map(|(name, family, labels, by)| Series { name, family, labels, by }));
    }
}

struct Cutter {
    done: Vec<Piece>,
    piece: Piece,
    size: usize,
}

impl Cutter {
    fn put(&mut self, size: usize, put: impl FnOnce(&mut Piece)) {
        let size = size + AROUND;
        let most = MOST_BYTES - 1024;
        if size > most {
            return;
        }
        if self.size + size > most {
            self.done.push(std::mem::take(&mut self.piece));
            self.size = 0;
        }
        self.size += size;
        put(&mut self.piece);
    }
}

/// The most that a text can take in JSON.
fn escaped(text: &str) -> usize {
    text.bytes().map(|b| if b < b' ' || b == b'"' || b == b'\\' { 6 } else { 1 }).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_arrive_whole_however_many() {
        let name = |n: usize| format!("cluster.\"{n}\"\u{1}.upstream_rq_total");
        let figures = Figures {
            counters: (0..5000).map(|n| (name(n), u64::MAX)).chain([("x".repeat(MOST_BYTES), 1)]).collect(),
            series: (0..300)
                .map(|n| Series { name: name(n), family: "f".into(), labels: vec![("a".into(), "b".repeat(900))], by: 1 })
                .collect(),
            gauges: vec![("g".into(), 3)],
        };
        let pieces = Piece::cut(figures.clone(), 7, false);
        assert!(pieces.len() > 5);
        let mut got = Figures::default();
        for (index, piece) in pieces.iter().enumerate() {
            let text = serde_json::to_vec(&Answer::Figures(piece.clone())).unwrap();
            assert!(text.len() <= MOST_BYTES, "{}", text.len());
            assert_eq!((piece.more, piece.connections), (index + 1 < pieces.len(), 7));
            let Answer::Figures(read) = serde_json::from_slice(&text).unwrap() else { panic!() };
            read.add_to(&mut got);
        }
        let mut expected = figures;
        expected.counters.pop();
        assert_eq!(got, expected);
        assert_eq!(Piece::cut(Figures::default(), 0, true), [Piece { last: true, ..Piece::default() }]);
    }
}
