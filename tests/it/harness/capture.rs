//! Packets as they were on the wire: tcpdump writes them, this file reads them back.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use super::place::{Place, until};
use super::process::{Process, command};

/// One UDP datagram over IPv4.
#[derive(Clone, Debug)]
pub struct Packet {
    /// Since an arbitrary moment.
    pub at: Duration,
    pub from: SocketAddrV4,
    pub to: SocketAddrV4,
    pub payload: Vec<u8>,
}

/// A running tcpdump on `lo` of the calling thread's network namespace.
pub struct Capture {
    process: Process,
    place: Place,
}

impl Capture {
    /// Starts to capture what `filter` matches; back when the capture runs.
    pub fn start(filter: &str) -> Self {
        let place = Place::new();
        let mut tcpdump = command("tcpdump");
        // The large buffer holds a burst while the machine is busy; -Z root keeps the right to write.
        tcpdump.args(["-i", "lo", "-n", "-U", "-s", "600", "-B", "65536", "-Z", "root", "-w"]);
        tcpdump.arg(place.path("pcap")).arg(filter);
        let process = Process::start(tcpdump, &place.path("log"));
        let listening = until(Duration::from_secs(10), || process.log().contains("listening on"));
        assert!(listening, "tcpdump does not start: {}", process.log());
        Self { process, place }
    }

    /// Ends the capture; all its packets in order.
    ///
    /// # Panics
    /// When the kernel dropped some: the test would judge a part for the whole.
    pub fn packets(mut self) -> Vec<Packet> {
        // The kernel hands a block over when it is full or a second old.
        std::thread::sleep(Duration::from_millis(1500));
        self.process.signal(libc::SIGINT);
        self.process.wait(Duration::from_secs(10)).expect("tcpdump ends");
        let log = self.process.log();
        assert!(log.contains("\n0 packets dropped by kernel"), "{log}");
        let bytes = std::fs::read(self.place.path("pcap")).expect("a capture file");
        read_pcap(&bytes)
    }
}

/// Reads a little-endian pcap file of Ethernet frames.
fn read_pcap(bytes: &[u8]) -> Vec<Packet> {
    let number = |at: usize| -> u64 {
        u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes")).into()
    };
    assert_eq!(number(0), 0xa1b2_c3d4, "a pcap file with microseconds");
    assert_eq!(number(20), 1, "Ethernet frames");
    let (mut at, mut packets) = (24, Vec::new());
    while at + 16 <= bytes.len() {
        let when = Duration::from_micros(number(at) * 1_000_000 + number(at + 4));
        let len = number(at + 8) as usize;
        packets.extend(read_frame(when, &bytes[at + 16..at + 16 + len]));
        at += 16 + len;
    }
    packets
}

/// Reads one Ethernet frame; `None` unless it is UDP over IPv4.
fn read_frame(at: Duration, frame: &[u8]) -> Option<Packet> {
    let ip = frame.strip_prefix(&frame[..12])?.strip_prefix(&[0x08, 0x00])?;
    let udp = ip.get(usize::from(ip[0] & 0xf) * 4..)?;
    let address = |at: usize| Ipv4Addr::from(<[u8; 4]>::try_from(&ip[at..at + 4]).expect("four"));
    let port = |at: usize| u16::from_be_bytes([udp[at], udp[at + 1]]);
    (ip[9] == 17).then(|| Packet {
        at,
        from: SocketAddrV4::new(address(12), port(0)),
        to: SocketAddrV4::new(address(16), port(2)),
        payload: udp[8..].to_vec(),
    })
}
