//! Packets on both of the proxy's interfaces, with the kernel's nanosecond timestamps (tcpdump, `AF_PACKET`).
//!
//! The kernel stamps a packet where it hands it to the capture: on the way in just before IP, on the way out just
//! before the device's driver. What the capture itself costs after the stamp is part of both the packets' latency
//! and of what anyone else measures at that time: filtering in the kernel and a short snap length keep it small,
//! and the file belongs in memory.

use std::collections::HashMap;
use std::fs::{self, File};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use etherparse::{LaxNetSlice, LaxSlicedPacket, TcpSlice, TransportSlice};
use pcap_parser::traits::PcapReaderIterator as _;
use pcap_parser::{LegacyPcapReader, Linktype, PcapBlockOwned, PcapError};
use rustix::net::{AddressFamily, SocketType, netdevice, socket};
use rustix::process::{Pid, Signal, kill_process};

use crate::live::TransientFile;
use crate::netns::{Bed, DOWNSTREAM_DEVICE, Family, Netns, UPSTREAM_DEVICE};
use crate::process::Child;
use crate::tools;
use crate::wire::{Direction, Packet, Side, Wire};

/// TCP with payload. The lengths of the headers are in the packet; `tcp[]` and `len` do not work for IPv6.
const PAYLOAD: &str = "(ip proto 6 and ip[2:2] - ((ip[0] & 0xf) << 2) - ((ip[((ip[0] & 0xf) << 2) + 12] & 0xf0) >> 2) != 0) \
     or (ip6 proto 6 and ip6[4:2] - ((ip6[52] & 0xf0) >> 2) != 0)";
/// The first packets of connections (SYN).
const OPENING: &str =
    "(ip proto 6 and ip[((ip[0] & 0xf) << 2) + 13] & 2 != 0) or (ip6 proto 6 and ip6[53] & 2 != 0)";
/// Bytes kept of each packet: IPv6 (40), TCP with options (up to 60) and enough of the head for the id, which
/// nginx puts behind its own `Server`, `Date`, `Content-Type`, `Content-Length` and `Connection`.
const SNAP_BYTES: u32 = 384;
/// More than the longest packet, which a device that segments by itself is handed.
const WHOLE_BYTES: u32 = 128 * 1024;
/// The kernel's ring: about a second of 30,000 requests/s, so that tcpdump may be slow for that long.
const RING_KIB: u32 = 128 * 1024;
/// Of "any" interface's cooked header, all in network order: protocol (2 bytes), reserved (2), interface (4), ...
const COOKED_BYTES: usize = 20;
/// How long tcpdump may take to start, to catch up and to end.
const PATIENCE: Duration = Duration::from_secs(10);
/// When the kernel has handed over the last block of packets, with some to spare: tcpdump asks for one a second.
const BLOCK_COMES: Duration = Duration::from_secs(3);
/// How often tcpdump is asked whether it caught up.
const ASK_EVERY: Duration = Duration::from_millis(100);
/// Room the packets may need, bytes: 30 s of 30,000 requests/s with 4 packets each.
const ROOM_BYTES: u64 = 1 << 30;

/// A running capture. Dropped, it ends and its file goes.
#[derive(Debug)]
pub struct Capture {
    tcpdump: Child,
    packets: Packets,
    /// How many lines of tcpdump's output were read.
    lines_read: usize,
}

/// Where the packets are, and which interfaces they were taken on.
#[derive(Debug)]
struct Packets {
    path: PathBuf,
    /// Removes the file.
    _file: TransientFile,
    /// The proxy's interface towards the client.
    downstream: Interface,
    /// The proxy's interface towards the server.
    upstream: Interface,
}

#[derive(Clone, Copy, Debug)]
struct Interface {
    side: Side,
    /// The kernel's.
    index: u32,
    /// To which connections on this side are opened.
    port: u16,
}

/// The proxy on both sides of which packets are captured.
#[derive(Clone, Copy, Debug)]
pub struct Vantage<'a> {
    /// Where it runs; has the devices of [`Bed::proxy`].
    pub netns: &'a Netns,
    /// The port it listens on.
    pub listen_port: u16,
    /// The port of the server that it speaks to.
    pub upstream_port: u16,
}

impl<'a> Vantage<'a> {
    /// The proxy of the bed.
    pub const fn of(bed: &'a Bed) -> Self {
        Self {
            netns: &bed.proxy,
            listen_port: Bed::proxy_address(Family::V4).port(),
            upstream_port: Bed::server_address(Family::V4).port(),
        }
    }
}

/// A finished capture. Dropped, its file goes.
#[derive(Debug)]
pub struct Captured {
    packets: Packets,
    /// How many packets were written.
    pub count: u64,
    /// How many packets the kernel had no room for. Anything but 0 makes the capture worthless as truth.
    pub dropped: u64,
}

/// What tcpdump says of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    captured: u64,
    /// Those dropped are among them.
    received: u64,
    dropped: u64,
}

impl Counts {
    /// Packets that are neither written nor dropped.
    const fn unwritten(self) -> u64 {
        self.received.saturating_sub(self.captured + self.dropped)
    }
}

impl Capture {
    /// Captures what client, proxy and server say: all of it where `whole`, else the beginnings of packets with
    /// payload. tcpdump's own output goes to `dir`. Returns when packets are being captured.
    ///
    /// # Errors
    /// When tcpdump is missing, may not capture, or does not start in time; the message has what it said.
    pub fn start(vantage: Vantage<'_>, whole: bool, dir: &Path) -> Result<Self> {
        let packets = Packets::room(vantage)?;
        let (filter, snap_bytes) = if whole {
            (format!("{PAYLOAD} or {OPENING}"), WHOLE_BYTES)
        } else {
            (PAYLOAD.to_owned(), SNAP_BYTES)
        };
        let mut command = vantage.netns.command(tools::tcpdump()?);
        command
            .args(["--interface=any", "--linktype=LINUX_SLL2", "--time-stamp-precision=nano", "-n"])
            .args(["--relinquish-privileges=root", &format!("--buffer-size={RING_KIB}")])
            .args([&format!("--snapshot-length={snap_bytes}"), "-w"])
            .arg(&packets.path)
            .arg(filter);
        let tcpdump = Child::start("tcpdump", &command, dir)?;
        let mut capture = Self { tcpdump, packets, lines_read: 0 };
        capture.await_line("begin to capture", |line| line.contains("listening on").then_some(()))?;
        Ok(capture)
    }

    /// Waits until everything the kernel has seen is written, and ends.
    ///
    /// # Errors
    /// When tcpdump does not catch up or end in time, or fails.
    pub fn stop(mut self) -> Result<Captured> {
        // The kernel hands packets over in blocks, the last one only after a second: ended before that, tcpdump
        // would lose them.
        let deadline = Instant::now() + PATIENCE;
        let (mut last, mut since) = (Counts::default(), Instant::now());
        loop {
            let counts = self.ask()?;
            if counts != last {
                (last, since) = (counts, Instant::now());
            }
            // The kernel counts from before tcpdump's filter was in place, too: those it has passed over.
            if last.unwritten() == 0 || since.elapsed() > BLOCK_COMES {
                break;
            }
            ensure!(
                Instant::now() < deadline,
                "tcpdump did not catch up: {last:?} after {} s",
                PATIENCE.as_secs()
            );
            std::thread::sleep(ASK_EVERY);
        }
        self.signal(Signal::INT)?;
        let captured = self.await_count("packets captured")?;
        let received = self.await_count("packets received by filter")?;
        let dropped = self.await_count("packets dropped by kernel")?;
        let status = self.tcpdump.wait_for(PATIENCE)?;
        ensure!(status.success(), "tcpdump failed ({status}){}", self.tcpdump.tail());
        let counts = Counts { captured, received, dropped };
        ensure!(
            counts.unwritten() == last.unwritten(),
            "tcpdump lost packets at its end: {counts:?}, {last:?}"
        );
        Ok(Captured { packets: self.packets, count: captured, dropped })
    }

    /// tcpdump's counts so far.
    fn ask(&mut self) -> Result<Counts> {
        self.signal(Signal::USR1)?;
        self.await_line("tell its counts", counts)
    }

    fn await_count(&mut self, what: &str) -> Result<u64> {
        self.await_line(&format!("tell its {what}"), |line| number_before(line, what))
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(self.tcpdump.pid().cast_signed()).context("tcpdump has no process id")?;
        kill_process(pid, signal).with_context(|| format!("tcpdump ended early{}", self.tcpdump.tail()))
    }

    /// What `found` makes of the first line, among those not read yet, from which it makes something.
    fn await_line<T>(&mut self, what: &str, found: impl Fn(&str) -> Option<T>) -> Result<T> {
        let log = self.tcpdump.log().context("tcpdump's output goes nowhere")?.to_owned();
        let lines_read = &mut self.lines_read;
        self.tcpdump.until(PATIENCE, what, |tcpdump| {
            // Asked before reading: what it said last is not missed.
            let ended = tcpdump.poll()?;
            let said = fs::read_to_string(&log).with_context(|| format!("cannot read {}", log.display()))?;
            // A line without its end is still being written.
            let whole = said.rsplit_once('\n').map_or("", |(whole, _)| whole);
            for line in whole.lines().skip(*lines_read) {
                *lines_read += 1;
                if let Some(value) = found(line) {
                    return Ok(Some(value));
                }
            }
            match ended {
                Some(status) => bail!("tcpdump ended ({status}) and did not {what}{}", tcpdump.tail()),
                None => Ok(None),
            }
        })
    }
}

impl Packets {
    /// An empty file for the packets taken in the proxy's namespace: in memory where there is room, else where
    /// cargo builds.
    fn room(vantage: Vantage<'_>) -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let memory = Path::new("/dev/shm");
        let free = rustix::fs::statvfs(memory).map_or(0, |memory| memory.f_bavail * memory.f_frsize);
        let dir = if free >= ROOM_BYTES {
            memory.to_owned()
        } else {
            eprintln!("capture: {} has no room; writing packets to disk disturbs a little", memory.display());
            tools::target()
        };
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = dir.join(format!("smp-bed-{}-{number}.pcap", std::process::id()));
        let file = TransientFile::create(path.clone(), "", 0o600)?;
        let interface = |side, device, port| {
            let index = vantage.netns.within(|| {
                let any = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
                netdevice::name_to_index(&any, device)
                    .with_context(|| format!("the proxy's namespace has no device {device}"))
            })?;
            anyhow::Ok(Interface { side, index, port })
        };
        Ok(Self {
            path,
            _file: file,
            downstream: interface(Side::Downstream, DOWNSTREAM_DEVICE, vantage.listen_port)?,
            upstream: interface(Side::Upstream, UPSTREAM_DEVICE, vantage.upstream_port)?,
        })
    }
}

impl Captured {
    /// The file with the packets, for those who read it by other means; it goes with this capture.
    pub fn path(&self) -> &Path {
        &self.packets.path
    }

    /// Reads the packets into `wire`, of which nothing was seen before, sorted by the interface they passed.
    ///
    /// # Errors
    /// When packets were dropped, the file is no nanosecond capture of "any" interface, is damaged, or holds
    /// another number of packets than tcpdump said, or connections do not carry what `wire` expects.
    pub fn read(&self, mut wire: Wire) -> Result<Wire> {
        ensure!(self.dropped == 0, "the capture is invalid: the kernel dropped {} packets", self.dropped);
        let interfaces = [self.packets.downstream, self.packets.upstream];
        let mut count = 0;
        let mut elsewhere: HashMap<u32, u64> = HashMap::new();
        each_packet(&self.packets.path, |time_ns, cooked| {
            count += 1;
            let (index, ip) = uncook(cooked)?;
            let Some(interface) = interfaces.iter().find(|interface| interface.index == index) else {
                *elsewhere.entry(index).or_default() += 1;
                return Ok(());
            };
            packet(*interface, time_ns, ip).map_or(Ok(()), |packet| wire.observe(&packet))
        })
        .with_context(|| format!("the capture {} cannot be read", self.packets.path.display()))?;
        ensure!(count == self.count, "the capture has {count} packets of {}", self.count);
        // The proxy talking to itself: not a crossing, but worth knowing.
        for (interface, count) in elsewhere {
            eprintln!(
                "capture: {count} packets passed interface {interface}, which is neither side of the proxy"
            );
        }
        Ok(wire)
    }
}

/// `tcpdump: 10 packets captured, 12 packets received by filter, 2 packets dropped by kernel`
fn counts(line: &str) -> Option<Counts> {
    let mut parts = line.rsplit_once("tcpdump: ")?.1.split(", ");
    Some(Counts {
        captured: number_before(parts.next()?, "packets captured")?,
        received: number_before(parts.next()?, "packets received by filter")?,
        dropped: number_before(parts.next()?, "packets dropped by kernel")?,
    })
}

/// The number of `N packets captured`, also where tcpdump says `1 packet`.
fn number_before(part: &str, what: &str) -> Option<u64> {
    let (number, said) = part.trim().split_once(' ')?;
    (said == what || said == what.replacen("packets", "packet", 1)).then(|| number.parse().ok())?
}

fn each_packet(file: &Path, mut take: impl FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
    const BUFFER_BYTES: usize = 1 << 20;
    let mut reader = LegacyPcapReader::new(BUFFER_BYTES, File::open(file)?)
        .map_err(|error| anyhow::anyhow!("no pcap file: {error:?}"))?;
    loop {
        match reader.next() {
            Ok((taken_bytes, block)) => {
                match block {
                    PcapBlockOwned::LegacyHeader(header) => {
                        ensure!(header.is_nanosecond_precision(), "its times are not nanoseconds");
                        ensure!(header.network == Linktype(276), "its link type is not LINUX_SLL2");
                    }
                    PcapBlockOwned::Legacy(packet) => {
                        let time_ns = u64::from(packet.ts_sec) * 1_000_000_000 + u64::from(packet.ts_usec);
                        take(time_ns, packet.data)?;
                    }
                    PcapBlockOwned::NG(_) => bail!("it is a pcapng file"),
                }
                reader.consume(taken_bytes);
            }
            Err(PcapError::Eof) => return Ok(()),
            Err(PcapError::Incomplete(_)) => {
                reader.refill().map_err(|error| anyhow::anyhow!("it is cut off: {error:?}"))?;
            }
            Err(error) => bail!("it is damaged: {error:?}"),
        }
    }
}

/// Interface and IP packet of a `LINUX_SLL2` frame.
fn uncook(cooked: &[u8]) -> Result<(u32, &[u8])> {
    let (header, ip) = cooked.split_at_checked(COOKED_BYTES).context("a frame without a cooked header")?;
    let interface = header[4..8].try_into().map(u32::from_be_bytes)?;
    Ok((interface, ip))
}

/// What of a TCP packet the snap length left; nothing when it is of no connection to the proxy's or the server's port.
fn packet(interface: Interface, time_ns: u64, ip: &[u8]) -> Option<Packet<'_>> {
    let sliced = LaxSlicedPacket::from_ip(ip).ok()?;
    let Some(TransportSlice::Tcp(tcp)) = sliced.transport else { return None };
    let (source, destination) = ends(&sliced.net?, &tcp)?;
    let (direction, opener) = if destination.port() == interface.port {
        (Direction::Request, source)
    } else if source.port() == interface.port {
        (Direction::Response, destination)
    } else {
        return None;
    };
    let (sequence, opens) = (tcp.sequence_number(), tcp.syn());
    Some(Packet { side: interface.side, direction, opener, time_ns, sequence, opens, payload: tcp.payload() })
}

/// Source and destination.
fn ends(net: &LaxNetSlice<'_>, tcp: &TcpSlice<'_>) -> Option<(SocketAddr, SocketAddr)> {
    let (source, destination): (IpAddr, IpAddr) = match net {
        LaxNetSlice::Ipv4(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        LaxNetSlice::Ipv6(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        LaxNetSlice::Arp(_) => return None,
    };
    Some((SocketAddr::new(source, tcp.source_port()), SocketAddr::new(destination, tcp.destination_port())))
}

#[cfg(test)]
mod tests {
    use super::{Counts, counts, number_before};

    #[test]
    fn tcpdump_is_understood() {
        let line = "tcpdump: 10 packets captured, 12 packets received by filter, 2 packets dropped by kernel";
        assert_eq!(counts(line), Some(Counts { captured: 10, received: 12, dropped: 2 }));
        assert_eq!(counts("tcpdump: listening on any"), None);
        assert_eq!(number_before("1 packet captured", "packets captured"), Some(1));
    }
}
