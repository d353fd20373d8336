//! A program of known cost: it holds known amounts of memory, uses a known amount of CPU time in a known way, and says what
//! the kernel counted for it.

use std::fs::File;
use std::hint::black_box;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::Result;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// How often the sign to begin is looked for.
const POLL: Duration = Duration::from_millis(50);

/// Of computing between two looks at the clock, each a system call: some 0.3 ms, of which a look is well below 1 %.
const STEPS: u32 = 200_000;

/// How much, and how.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Computing.
    pub user: Duration,
    /// Reading what the kernel has to make.
    pub system: Duration,
    /// Sending to itself over loopback.
    pub loopback: Duration,
}

/// What it holds as long as it runs.
#[derive(Debug)]
pub struct Holding {
    _memory: Vec<u8>,
    _connections: Vec<[TcpStream; 2]>,
}

/// What the kernel counted for it meanwhile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spent {
    /// All CPU time, exactly, softirqs on top of it included where the kernel does not count these apart.
    pub total_ns: u64,
    /// Of that in user mode, as `getrusage` has it.
    pub user_ns: u64,
    /// ... and in the kernel.
    pub system_ns: u64,
}

impl Holding {
    /// Takes so many bytes of memory, and makes so many connections to itself over loopback that have `unread_bytes` to be read
    /// each.
    ///
    /// # Errors
    /// When the kernel refuses them.
    pub fn take(memory_bytes: usize, connections: usize, unread_bytes: usize) -> Result<Self> {
        // Not zeros, which would take none.
        let memory = vec![1; memory_bytes];
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let connect = || {
            let mut out = TcpStream::connect(listener.local_addr()?)?;
            let (back, _) = listener.accept()?;
            out.write_all(&vec![1; unread_bytes])?;
            Ok([out, back])
        };
        let connections = (0..connections).map(|_| connect()).collect::<Result<_>>()?;
        Ok(Self { _memory: memory, _connections: connections })
    }
}

/// Waits until there is a file at `go`, then works.
///
/// # Errors
/// When the kernel refuses what it needs.
pub fn run(go: &Path, plan: Plan) -> Result<Spent> {
    while !go.exists() {
        thread::sleep(POLL);
    }
    let before = Spent::so_far()?;
    let mut seed = 1u64;
    until(plan.user, || {
        for _ in 0..STEPS {
            seed = black_box(seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
        }
        Ok(())
    })?;
    let mut zeros = File::open("/dev/zero")?;
    let mut buffer = vec![0; 1 << 16];
    until(plan.system, || Ok(zeros.read_exact(&mut buffer)?))?;
    if !plan.loopback.is_zero() {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let mut out = TcpStream::connect(listener.local_addr()?)?;
        let (mut back, _) = listener.accept()?;
        out.set_nodelay(true)?;
        let buffer = &mut buffer[..1024];
        until(plan.loopback, || {
            out.write_all(buffer)?;
            Ok(back.read_exact(buffer)?)
        })?;
    }
    Ok(Spent::so_far()?.since(before))
}

fn until(long: Duration, mut step: impl FnMut() -> Result<()>) -> Result<()> {
    let end_ns = cpu_time_ns() + long.as_nanos() as u64;
    while cpu_time_ns() < end_ns {
        step()?;
    }
    Ok(())
}

fn cpu_time_ns() -> u64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}

impl Spent {
    fn so_far() -> Result<Self> {
        let usage = getrusage(UsageWho::RUSAGE_SELF)?;
        let ns = |time: TimeVal| {
            time.tv_sec().unsigned_abs() * 1_000_000_000 + time.tv_usec().unsigned_abs() * 1_000
        };
        Ok(Self {
            total_ns: cpu_time_ns(),
            user_ns: ns(usage.user_time()),
            system_ns: ns(usage.system_time()),
        })
    }

    fn since(self, earlier: Self) -> Self {
        Self {
            total_ns: self.total_ns - earlier.total_ns,
            user_ns: self.user_ns - earlier.user_ns,
            system_ns: self.system_ns - earlier.system_ns,
        }
    }
}
