//! Listens on the pod's wire and tells what it saw on one TCP port: TLS records and their version, and whether a marker went by in the clear.
use std::collections::HashMap;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::socket::{AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt, socket};
use nix::sys::time::{TimeVal, TimeValLike};

/// Content types of TLS records: change_cipher_spec, alert, handshake, application_data.
const RECORDS: std::ops::RangeInclusive<u8> = 20..=23;
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;
const SERVER_HELLO: u8 = 2;
/// The extension `supported_versions` of a server hello that chooses TLS 1.3.
const CHOOSES_TLS13: [u8; 6] = [0x00, 0x2b, 0x00, 0x02, 0x03, 0x04];

#[derive(Default)]
struct Seen {
    flows: HashMap<(u16, u16), Vec<u8>>,
    server_hellos: u64,
    tls13: u64,
    application_data: u64,
    marker: u64,
    not_tls: u64,
}

pub(crate) fn run(port: &str, marker: &str, seconds: &str) -> anyhow::Result<()> {
    let port: u16 = port.parse()?;
    let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)?;
    setsockopt(&socket, ReceiveTimeout, &TimeVal::milliseconds(100))?;
    println!("listening");
    let until = Instant::now() + Duration::from_secs(seconds.parse()?);
    let mut buffer = vec![0; 1 << 17];
    let mut seen = Seen::default();
    while Instant::now() < until {
        let Ok((length, from)) = recvfrom::<LinkAddr>(socket.as_raw_fd(), &mut buffer) else { continue };
        // The loopback interface carries the plaintext between application and sidecar.
        if from.is_none_or(|f| f.hatype() == libc::ARPHRD_LOOPBACK) {
            continue;
        }
        if let Some((ports, payload)) = buffer.get(..length).and_then(segment)
            && (ports.0 == port || ports.1 == port)
            && !payload.is_empty()
        {
            seen.look(ports, payload, marker.as_bytes());
        }
    }
    let Seen { server_hellos, tls13, application_data, marker, not_tls, .. } = seen;
    println!(
        "{}",
        serde_json::json!({
            "server_hellos": server_hellos, "tls13": tls13, "application_data": application_data, "marker": marker, "not_tls": not_tls,
        })
    );
    Ok(())
}

impl Seen {
    fn look(&mut self, ports: (u16, u16), payload: &[u8], marker: &[u8]) {
        if payload.windows(marker.len()).any(|w| w == marker) {
            self.marker += 1;
        }
        let mut stream = self.flows.remove(&ports).unwrap_or_default();
        stream.extend_from_slice(payload);
        let mut rest = &stream[..];
        while let [kind, major, _, high, low, after @ ..] = rest {
            if !RECORDS.contains(kind) || *major != 3 {
                self.not_tls += 1;
                rest = &[];
                break;
            }
            let length = usize::from(u16::from_be_bytes([*high, *low]));
            let Some((record, behind)) = after.split_at_checked(length) else { break };
            match (*kind, record.first()) {
                (HANDSHAKE, Some(&SERVER_HELLO)) => {
                    self.server_hellos += 1;
                    self.tls13 += u64::from(record.windows(CHOOSES_TLS13.len()).any(|w| w == CHOOSES_TLS13));
                }
                (APPLICATION_DATA, _) => self.application_data += 1,
                _ => {}
            }
            rest = behind;
        }
        let rest = rest.to_vec();
        self.flows.insert(ports, rest);
    }
}

/// Ports and payload of a TCP segment within an Ethernet frame.
fn segment(frame: &[u8]) -> Option<((u16, u16), &[u8])> {
    let packet = frame.get(14..)?;
    let number = |at: usize| Some(u16::from_be_bytes([*packet.get(at)?, *packet.get(at + 1)?]));
    let (tcp, end) = match frame.get(12..14)? {
        [0x08, 0x00] if packet.get(9) == Some(&6) => (usize::from(packet.first()? & 15) * 4, usize::from(number(2)?)),
        [0x86, 0xdd] if packet.get(6) == Some(&6) => (40, 40 + usize::from(number(4)?)),
        _ => return None,
    };
    let header = usize::from(packet.get(tcp + 12)? >> 4) * 4;
    // A segment that the kernel merged may be longer than its length field can say.
    let end = if end == 0 { packet.len() } else { end.min(packet.len()) };
    Some(((number(tcp)?, number(tcp + 2)?), packet.get(tcp + header..end)?))
}
