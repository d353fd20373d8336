//! Packets on both of the proxy's interfaces, with the kernel's nanosecond timestamps (tcpdump, `AF_PACKET`).
//!
//! The kernel stamps a packet where it hands it to the capture: on the way in just before IP, on the way out just
//! before the device's driver. What the capture itself costs after the stamp is part of both the packets' latency
//! and of what anyone else measures at that time: filtering in the kernel and a short snap length keep it small,
//! and the file belongs in memory.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use etherparse::{LaxSlicedPacket, TransportSlice};
use pcap_parser::traits::PcapReaderIterator as _;
use pcap_parser::{LegacyPcapReader, Linktype, PcapBlockOwned, PcapError};
use rustix::process::{Pid, Signal, kill_process};

use crate::wire::{Side, Wire};

/// TCP with payload. The lengths of the headers are in the packet; `tcp[]` and `len` do not work for IPv6.
const FILTER: &str = "(ip proto 6 and ip[2:2] - ((ip[0] & 0xf) << 2) - ((ip[((ip[0] & 0xf) << 2) + 12] & 0xf0) >> 2) != 0) \
     or (ip6 proto 6 and ip6[4:2] - ((ip6[52] & 0xf0) >> 2) != 0)";
/// Bytes kept of each packet: IPv6 (40), TCP with options (up to 60) and enough of the head for the id, which
/// nginx puts behind its own `Server`, `Date`, `Content-Type`, `Content-Length` and `Connection`.
const SNAP_BYTES: u32 = 384;
/// The kernel's ring: about a second of 30,000 requests/s, so that tcpdump may be slow for that long.
const RING_KIB: u32 = 128 * 1024;
/// Of "any" interface's cooked header, all in network order: protocol (2 bytes), reserved (2), interface (4), ...
const COOKED_BYTES: usize = 20;
/// How long tcpdump may take to start, to catch up and to end.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often tcpdump is asked whether it caught up.
const ASK_EVERY: Duration = Duration::from_millis(100);

/// The proxy's interfaces, by their kernel index in its namespace.
#[derive(Clone, Copy, Debug)]
pub struct Interfaces {
    /// The one towards the client.
    pub downstream: u32,
    /// The one towards the server.
    pub upstream: u32,
}

/// A running capture. Dropped, it ends and its file stays.
pub struct Capture {
    tcpdump: Child,
    said: Receiver<String>,
    file: PathBuf,
}

/// A finished capture.
#[derive(Clone, Debug)]
pub struct Captured {
    /// Where the packets are.
    pub file: PathBuf,
    /// How many were written.
    pub packets: u64,
    /// How many the kernel had no room for. Anything but 0 makes the capture worthless as truth.
    pub dropped: u64,
}

/// What tcpdump says of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    captured: u64,
    received: u64,
    dropped: u64,
}

impl Capture {
    /// Captures into `file`, which should be in memory. `within` makes a command run in the proxy's network
    /// namespace. Returns when packets are being captured.
    ///
    /// # Errors
    /// When tcpdump is missing, may not capture, or does not start in time.
    pub fn start(within: impl FnOnce(&str) -> Command, file: &Path) -> Result<Self> {
        let mut tcpdump = within("tcpdump")
            .args(["--interface=any", "--linktype=LINUX_SLL2", "--time-stamp-precision=nano", "-n"])
            .args(["--relinquish-privileges=root", &format!("--buffer-size={RING_KIB}")])
            .args([&format!("--snapshot-length={SNAP_BYTES}"), "-w"])
            .arg(file)
            .arg(FILTER)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("tcpdump cannot be started; `cargo xtask setup` installs it")?;
        let stderr = tcpdump.stderr.take().context("tcpdump has no standard error")?;
        let capture = Self { tcpdump, said: follow(stderr), file: file.to_owned() };
        capture.await_line("did not begin to capture", |line| line.contains("listening on").then_some(()))?;
        Ok(capture)
    }

    /// Waits until everything the kernel has seen is written, and ends.
    ///
    /// # Errors
    /// When tcpdump does not catch up or end in time, or fails.
    pub fn stop(mut self) -> Result<Captured> {
        // The kernel hands packets over in blocks, the last one only after a second: an interrupt before that
        // would lose them.
        let deadline = Instant::now() + PATIENCE;
        let mut before = None;
        loop {
            self.signal(Signal::USR1)?;
            let counts = self.await_line("did not tell its counts", counts)?;
            if counts.captured >= counts.received && before == Some(counts) {
                break;
            }
            ensure!(
                Instant::now() < deadline,
                "tcpdump did not catch up: {} of {} packets after {} s",
                counts.captured,
                counts.received,
                PATIENCE.as_secs()
            );
            before = Some(counts);
            std::thread::sleep(ASK_EVERY);
        }
        self.signal(Signal::INT)?;
        let mut last = Counts::default();
        for part in ["packets captured", "packets received by filter", "packets dropped by kernel"] {
            let count =
                self.await_line("did not tell its counts at the end", |line| number_before(line, part))?;
            match part {
                "packets captured" => last.captured = count,
                "packets received by filter" => last.received = count,
                _ => last.dropped = count,
            }
        }
        let status = self.tcpdump.wait().context("tcpdump's end cannot be awaited")?;
        ensure!(status.success(), "tcpdump failed ({status})");
        Ok(Captured { file: self.file.clone(), packets: last.captured, dropped: last.dropped })
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(Pid::from_child(&self.tcpdump), signal).context("tcpdump ended early")
    }

    /// The first line from which `found` makes something.
    fn await_line<T>(&self, failure: &str, found: impl Fn(&str) -> Option<T>) -> Result<T> {
        let deadline = Instant::now() + PATIENCE;
        let mut other = Vec::new();
        loop {
            match self.said.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => match found(&line) {
                    Some(value) => return Ok(value),
                    None => other.push(line),
                },
                Err(RecvTimeoutError::Timeout) => {
                    bail!("tcpdump {failure} within {} s; it said: {}", PATIENCE.as_secs(), other.join(" / "))
                }
                Err(RecvTimeoutError::Disconnected) => {
                    bail!("tcpdump {failure}, it ended and said: {}", other.join(" / "))
                }
            }
        }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        // After `stop` it is gone already and both calls only say so.
        if let Ok(None) = self.tcpdump.try_wait()
            && let Err(error) = self.tcpdump.kill().and_then(|()| self.tcpdump.wait())
        {
            eprintln!("tcpdump could not be ended: {error}");
        }
    }
}

impl Captured {
    /// Reads the packets and sorts them by the interface they passed.
    ///
    /// # Errors
    /// When packets were dropped, the file is no nanosecond capture of "any" interface, is damaged, or holds
    /// another number of packets than tcpdump said.
    pub fn wire(&self, interfaces: Interfaces) -> Result<Wire> {
        ensure!(self.dropped == 0, "the capture is invalid: the kernel dropped {} packets", self.dropped);
        let mut wire = Wire::default();
        let mut packets = 0;
        let mut elsewhere: HashMap<u32, u64> = HashMap::new();
        each_packet(&self.file, |time_ns, cooked| {
            packets += 1;
            let (interface, ip) = uncook(cooked)?;
            let side = if interface == interfaces.downstream {
                Side::Downstream
            } else if interface == interfaces.upstream {
                Side::Upstream
            } else {
                *elsewhere.entry(interface).or_default() += 1;
                return Ok(());
            };
            if let Some(payload) = tcp_payload(ip) {
                wire.observe(side, time_ns, payload);
            }
            Ok(())
        })
        .with_context(|| format!("the capture {} cannot be read", self.file.display()))?;
        ensure!(packets == self.packets, "the capture has {packets} packets of {}", self.packets);
        // Loopback, or a third way out: not the proxy's two sides, but worth knowing.
        for (interface, count) in elsewhere {
            eprintln!(
                "capture: {count} packets passed interface {interface}, which is neither side of the proxy"
            );
        }
        Ok(wire)
    }
}

/// tcpdump's standard error, line by line, from a thread that ends with it.
fn follow(stderr: ChildStderr) -> Receiver<String> {
    let (send, receive) = sync_channel(64);
    std::thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            if send.send(line).is_err() {
                return;
            }
        }
    });
    receive
}

/// `tcpdump: 10 packets captured, 12 packets received by filter, 0 packets dropped by kernel`
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

/// What of the payload the snap length left.
fn tcp_payload(ip: &[u8]) -> Option<&[u8]> {
    match LaxSlicedPacket::from_ip(ip).ok()?.transport? {
        TransportSlice::Tcp(tcp) => Some(tcp.payload()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::{Counts, counts, number_before};

    #[test]
    fn tcpdump_is_understood() {
        let line = "tcpdump: 10 packets captured, 12 packets received by filter, 0 packets dropped by kernel";
        assert_eq!(counts(line), Some(Counts { captured: 10, received: 12, dropped: 0 }));
        assert_eq!(counts("tcpdump: listening on any"), None);
        assert_eq!(number_before("1 packet captured", "packets captured"), Some(1));
    }
}
