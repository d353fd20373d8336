//! Network namespaces: one each for the client, the proxy (or each of two) and the server.
//!
//! Namespaces are named `smp-bed-<pid>-<start time of that process>-<number>-<role>`, so that those of a process
//! that was killed are told from those in use, and removed by whoever makes the next bed.
//!
//! The devices' offloads stay on: pods on real nodes have them on too, and a message of one segment, which is what
//! is compared with the wire, looks the same with and without.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use procfs::process::Process;
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::{live, process};

const IP: &str = "/usr/sbin/ip";
/// How many addresses the server of a [`Bed`] has, one after the other.
pub const SERVERS: u8 = 4;
/// Begins the name of every namespace made here.
const PREFIX: &str = "smp-bed";
/// How long a device may take to see its other end.
const CARRIER_LONGEST: Duration = Duration::from_secs(10);
/// How long processes left in a stale namespace may take to end.
const STALE_GRACE: Duration = Duration::from_secs(5);

/// Device of the proxy's namespace that leads to the client.
pub const DOWNSTREAM_DEVICE: &str = "downstream";
/// Device of the proxy's namespace that leads to the server.
pub const UPSTREAM_DEVICE: &str = "upstream";
/// The one device of the client's and of the server's namespace, beside `lo`.
pub const END_DEVICE: &str = "eth0";

/// Which Internet protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// A network namespace that is removed on drop.
#[derive(Debug)]
pub struct Netns {
    name: String,
}

impl Netns {
    fn create(name: String) -> Result<Self> {
        // Held over making and listing, so that a signal finds the namespace listed or not there.
        let mut live = live::lock()?;
        ip(["netns", "add", &name]).context("making network namespaces needs root and CAP_SYS_ADMIN")?;
        live.namespaces.insert(name.clone());
        drop(live);
        let netns = Self { name };
        netns.ip(["link", "set", "lo", "up"])?;
        Ok(netns)
    }

    pub(crate) fn ip<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Result<()> {
        process::output(self.command(IP).args(arguments)).map(drop)
    }

    /// Waits until IPv6 packets pass its devices. The kernel notes the carrier of a new device up to seconds late;
    /// IPv6 waits for that, IPv4 does not.
    ///
    /// # Errors
    /// When a device has no carrier within 10 s.
    pub fn await_ipv6(&self) -> Result<()> {
        let asked = Instant::now();
        loop {
            let devices = process::output(self.command(IP).args(["-oneline", "link", "show", "up"]))?;
            if !devices.contains("NO-CARRIER") {
                return Ok(());
            }
            if asked.elapsed() > CARRIER_LONGEST {
                bail!("a device of {} has no carrier after {} s", self.name, CARRIER_LONGEST.as_secs());
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// The name that `ip netns` knows it by.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that keeps it.
    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// A command that runs inside.
    ///
    /// Only the network changes: `ip netns exec` would also mount a new `/sys`, without the bpf and cgroup file
    /// systems below it. The process that starts becomes the program, so its id is the program's.
    pub fn command(&self, program: impl Into<OsString>) -> Command {
        let mut words = self.wrap(program).into_iter();
        let mut command = Command::new(words.next().unwrap_or_default());
        command.args(words);
        command
    }

    /// The words of [`Netns::command`], for those who hand a command on to another program.
    pub fn wrap(&self, program: impl Into<OsString>) -> Vec<OsString> {
        let mut net = OsString::from("--net=");
        net.push(self.path());
        vec!["/usr/bin/nsenter".into(), net, "--".into(), program.into()]
    }

    /// Runs a function on a thread inside and returns what it returns. Sockets opened by it stay inside.
    ///
    /// # Errors
    /// When the thread cannot enter, and whatever the function fails with.
    pub fn within<T: Send>(&self, function: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let path = self.path();
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                let netns = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
                move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))
                    .with_context(|| format!("cannot enter {}", path.display()))?;
                function()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let mut live = live::locked();
        if live.namespaces.remove(&self.name)
            && let Err(error) = remove(&self.name)
        {
            eprintln!("{error:#}");
        }
    }
}

/// The three namespaces, joined: client to proxy and proxy to server, IPv4 and IPv6, nothing else reachable.
///
/// Drop order matters to the owner: processes inside must be stopped before, or they keep a nameless namespace.
#[derive(Debug)]
pub struct Bed {
    /// Where load is made.
    pub client: Netns,
    /// Where the proxy runs.
    pub proxy: Netns,
    /// Where the server runs.
    pub server: Netns,
}

impl Bed {
    /// Makes the bed, after removing what killed processes left of theirs.
    ///
    /// # Errors
    /// Without root, without `iproute2`, or when the kernel refuses.
    pub fn new() -> Result<Self> {
        let create = namespaces()?;
        let bed = Self { client: create("client")?, proxy: create("proxy")?, server: create("server")? };
        join(1, (&bed.client, END_DEVICE), (&bed.proxy, DOWNSTREAM_DEVICE))?;
        join(2, (&bed.proxy, UPSTREAM_DEVICE), (&bed.server, END_DEVICE))?;
        for family in [Family::V4, Family::V6] {
            for server in in_a_row(Self::server_address(family), SERVERS).skip(1) {
                add_address(&bed.server, END_DEVICE, server.ip())?;
            }
        }
        Ok(bed)
    }

    /// The client's address.
    pub const fn client_ip(family: Family) -> IpAddr {
        address(family, 1, 1)
    }

    /// The proxy's address towards the client: where it listens.
    pub const fn proxy_ip(family: Family) -> IpAddr {
        address(family, 1, 2)
    }

    /// The proxy's address towards the server.
    pub const fn proxy_upstream_ip(family: Family) -> IpAddr {
        address(family, 2, 1)
    }

    /// The server's address.
    pub const fn server_ip(family: Family) -> IpAddr {
        address(family, 2, 2)
    }

    /// Where a proxy listens by custom of the bed: port 8080.
    pub const fn proxy_address(family: Family) -> SocketAddr {
        SocketAddr::new(Self::proxy_ip(family), 8080)
    }

    /// Where a server listens by custom of the bed: port 9090.
    pub const fn server_address(family: Family) -> SocketAddr {
        SocketAddr::new(Self::server_ip(family), 9090)
    }
}

/// Four namespaces in a row, as two pods with a sidecar each have them: client to the client's proxy, that to the
/// server's proxy, that to the server. IPv4 and IPv6, nothing else reachable.
///
/// Both proxies' namespaces have the devices of [`Bed::proxy`]. Drop order matters as with [`Bed`].
#[derive(Debug)]
pub struct PairBed {
    /// Where load is made.
    pub client: Netns,
    /// Where the proxy runs that the client speaks to.
    pub client_proxy: Netns,
    /// Where the proxy runs that speaks to the server.
    pub server_proxy: Netns,
    /// Where the server runs.
    pub server: Netns,
}

impl PairBed {
    /// As [`Bed::new`].
    ///
    /// # Errors
    /// As [`Bed::new`].
    pub fn new() -> Result<Self> {
        let create = namespaces()?;
        let bed = Self {
            client: create("client")?,
            client_proxy: create("client-proxy")?,
            server_proxy: create("server-proxy")?,
            server: create("server")?,
        };
        join(1, (&bed.client, END_DEVICE), (&bed.client_proxy, DOWNSTREAM_DEVICE))?;
        join(2, (&bed.client_proxy, UPSTREAM_DEVICE), (&bed.server_proxy, DOWNSTREAM_DEVICE))?;
        join(3, (&bed.server_proxy, UPSTREAM_DEVICE), (&bed.server, END_DEVICE))?;
        Ok(bed)
    }

    /// Where the client's proxy listens: port 8080.
    pub const fn client_proxy_address(family: Family) -> SocketAddr {
        SocketAddr::new(address(family, 1, 2), 8080)
    }

    /// Where the server's proxy listens: port 8443.
    pub const fn server_proxy_address(family: Family) -> SocketAddr {
        SocketAddr::new(address(family, 2, 2), 8443)
    }

    /// Where the server listens: port 9090.
    pub const fn server_address(family: Family) -> SocketAddr {
        SocketAddr::new(address(family, 3, 2), 9090)
    }
}

/// What makes the namespaces of one bed by their roles, after removing what killed processes left of theirs.
fn namespaces() -> Result<impl Fn(&str) -> Result<Netns>> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    remove_stale()?;
    let me = Process::myself()?.stat().context("cannot read /proc/self/stat")?;
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    Ok(move |role: &str| Netns::create(format!("{PREFIX}-{}-{}-{number}-{role}", me.pid, me.starttime)))
}

/// Networks 10.77.`network`.0/24 and `fd77:network::/64`.
const fn address(family: Family, network: u8, host: u8) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::new(10, 77, network, host)),
        Family::V6 => IpAddr::V6(Ipv6Addr::new(0xfd77, network as u16, 0, 0, 0, 0, 0, host as u16)),
    }
}

/// Gives a device one more address.
fn add_address(netns: &Netns, device: &str, address: IpAddr) -> Result<()> {
    let bits = if address.is_ipv4() { 24 } else { 64 };
    let address_and_bits = format!("{address}/{bits}");
    let add = ["address", "add", &address_and_bits, "dev", device];
    // Without `nodad` an IPv6 address cannot be used for its first second.
    netns.ip(add.into_iter().chain(address.is_ipv6().then_some("nodad")))
}

/// So many addresses from the first on, the hosts next to each other.
pub fn in_a_row(first: SocketAddr, count: u8) -> impl Iterator<Item = SocketAddr> {
    let ip = move |host: u8| match first.ip() {
        IpAddr::V4(first) => IpAddr::V4(Ipv4Addr::from_bits(first.to_bits() + u32::from(host))),
        IpAddr::V6(first) => IpAddr::V6(Ipv6Addr::from_bits(first.to_bits() + u128::from(host))),
    };
    (0..count).map(move |host| SocketAddr::new(ip(host), first.port()))
}

/// Links two namespaces by a pair of devices: host 1 of the network on the left, host 2 on the right.
fn join(network: u8, left: (&Netns, &str), right: (&Netns, &str)) -> Result<()> {
    let pair = ["type", "veth", "peer", "name", right.1, "netns", &right.0.name];
    left.0.ip(["link", "add", left.1].into_iter().chain(pair))?;
    for (host, (netns, device)) in [(1, left), (2, right)] {
        for family in [Family::V4, Family::V6] {
            add_address(netns, device, address(family, network, host))?;
        }
        netns.ip(["link", "set", device, "up"])?;
    }
    Ok(())
}

fn ip<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Result<String> {
    process::output(Command::new(IP).args(arguments))
}

/// Removes a namespace. Its devices go with it once the last process inside has ended.
///
/// # Errors
/// When it is not there or the kernel refuses.
pub(crate) fn remove(name: &str) -> Result<()> {
    ip(["netns", "delete", name]).map(drop)
}

/// Removes the namespaces whose makers are gone, and ends what still runs in them.
fn remove_stale() -> Result<()> {
    let names = match std::fs::read_dir("/run/netns") {
        Ok(entries) => entries.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>()?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).context("cannot read /run/netns"),
    };
    for name in names.iter().filter_map(|name| name.to_str()) {
        if maker(name).is_some_and(|(pid, started)| !lives(pid, started)) {
            // Two beds made at the same moment both see it; the one who is late finds it gone.
            if let Err(error) = end_processes(name).and_then(|()| remove(name))
                && PathBuf::from("/run/netns").join(name).exists()
            {
                return Err(error).context("a namespace of an earlier run cannot be removed");
            }
        }
    }
    Ok(())
}

/// Process id and start time of the one who made a namespace of this name, if it was a bed.
fn maker(name: &str) -> Option<(i32, u64)> {
    let mut parts = name.strip_prefix(PREFIX)?.strip_prefix('-')?.split('-');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn lives(pid: i32, started: u64) -> bool {
    Process::new(pid).and_then(|process| process.stat()).is_ok_and(|stat| stat.starttime == started)
}

fn end_processes(name: &str) -> Result<()> {
    let asked = Instant::now();
    loop {
        let inside = ip(["netns", "pids", name])?;
        let inside: Vec<Pid> =
            inside.lines().filter_map(|line| line.trim().parse().ok().and_then(Pid::from_raw)).collect();
        if inside.is_empty() {
            return Ok(());
        }
        if asked.elapsed() > STALE_GRACE {
            bail!("processes {inside:?} in {name} do not end");
        }
        for pid in inside {
            match kill_process(pid, Signal::KILL) {
                Ok(()) | Err(Errno::SRCH) => {}
                Err(error) => return Err(error).with_context(|| format!("cannot end a process in {name}")),
            }
        }
        thread::sleep(Duration::from_millis(5));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_tells_its_maker() {
        assert_eq!(maker("smp-bed-12-3456-0-client"), Some((12, 3456)));
        assert_eq!(maker("smp-bed-x-3456-0-client"), None);
        assert_eq!(maker("someone-elses"), None);
    }

    #[test]
    fn this_process_lives_and_one_of_another_start_does_not() {
        let me = Process::myself().and_then(|process| process.stat()).unwrap();
        assert!(lives(me.pid, me.starttime));
        assert!(!lives(me.pid, me.starttime + 1));
    }
}
