//! Our own upstream traffic without conntrack, by the mark of its sockets.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use nodens::intercept::untracked::Untracked;

use crate::harness::node::{Node, POD, nft, say, tables};
use crate::harness::{namespace, until};
use crate::takeover::needs_node;

/// The mark of the sockets.
const MARK: u32 = 0x306e;

/// Sends a datagram from a fresh socket to the pod and back; tells whether it came back.
fn exchange(to: SocketAddr, mark: Option<u32>) -> bool {
    let any: IpAddr = if to.is_ipv4() { [0, 0, 0, 0].into() } else { [0u16; 8].into() };
    let socket = UdpSocket::bind((any, 0)).expect("a port");
    if let Some(mark) = mark {
        use std::os::fd::AsRawFd;
        // SAFETY: a plain system call with a value that outlives it.
        let result = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_MARK,
                (&raw const mark).cast(),
                4,
            )
        };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    }
    socket.connect(to).expect("a route");
    socket.set_read_timeout(Some(Duration::from_millis(500))).expect("a timeout");
    socket.send(b"there").expect("sent");
    socket.recv(&mut [0; 8]).is_ok()
}

/// How many conntrack entries lead to the address.
fn entries_to(ip: &str) -> usize {
    let family = if ip.contains(':') { "ipv6" } else { "ipv4" };
    say("conntrack", &["-L", "-f", family, "-d", ip]).lines().count()
}

#[test]
fn marked_traffic_with_named_upstreams_has_no_entries_and_all_other_has() {
    needs_node!();
    namespace::inside(|| {
        let node = Node::new();
        let upstreams = POD.map(|ip| -> IpAddr { ip.parse().expect("an address") });
        let echoes = upstreams.map(|ip| {
            let socket = node.in_pod(|| UdpSocket::bind((ip, 5300)).expect("a port"));
            let address = socket.local_addr().expect("bound");
            socket.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
            std::thread::spawn(move || {
                let mut buffer = [0; 64];
                while let Ok((len, from)) = socket.recv_from(&mut buffer) {
                    let _ = socket.send_to(&buffer[..len], from);
                }
            });
            address
        });
        for echo in echoes {
            let answers = || exchange(echo, None);
            assert!(until(Duration::from_secs(5), answers), "{echo} cannot be reached");
        }
        let mut untracked = Untracked::new(MARK).expect("a socket");
        let count = |mark| {
            say("conntrack", &["-F"]);
            echoes.map(|echo| {
                assert!(exchange(echo, mark), "no response from {echo}");
                entries_to(&echo.ip().to_string())
            })
        };
        assert_eq!((count(Some(MARK)), tables().len()), ([1, 1], 0), "tracked before");
        untracked.set(&BTreeSet::from(upstreams)).expect("switched on");
        assert_eq!((count(Some(MARK)), count(None), count(Some(7))), ([0, 0], [1, 1], [1, 1]));
        untracked.set(&BTreeSet::from([upstreams[1]])).expect("one is taken out");
        assert_eq!(count(Some(MARK)), [1, 0]);
        untracked.set(&BTreeSet::from([upstreams[0]])).expect("the other one");
        assert_eq!(count(Some(MARK)), [0, 1]);
        // What a probe would find: a stateful firewall drops responses that nobody tracked.
        nft("table inet wall {\n chain wall { type filter hook input priority 0; \
             iifname \"cable\" ct state untracked meta l4proto udp drop\n }\n}");
        assert!(!exchange(echoes[0], Some(MARK)) && exchange(echoes[1], Some(MARK)));
        untracked.set(&BTreeSet::new()).expect("switched off");
        assert_eq!((count(Some(MARK)), tables().len()), ([1, 1], 0));
        untracked.set(&BTreeSet::from(upstreams)).expect("switched on again");
        drop(untracked);
        assert!(until(Duration::from_secs(1), || tables().is_empty()));
    });
}
