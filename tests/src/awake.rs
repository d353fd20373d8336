//! Processors that stay awake between messages.
//!
//! A processor that slept resumes with cold caches, and in a virtual machine by way of the host. Whatever runs then takes
//! several times as long, the capture's own work on a packet too: 2.4 us instead of 0.4 between its time stamp and the
//! device (median of 900 messages that took over 150 us through Envoy, one connection). That is part of what both the
//! packets and the agent say, but not the same part.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};

/// The kernel's way to ask for a longest time to wake up (`Documentation/power/pm_qos_interface.rst`).
const LATENCY: &str = "/dev/cpu_dma_latency";

/// Keeps the processors awake until it is dropped, or this process ends.
#[derive(Debug)]
pub struct Awake {
    _request: File,
}

impl Awake {
    /// Asks for it: idle processors poll where the kernel's driver for idle states knows how.
    ///
    /// # Errors
    /// Without root, and where the kernel has no such device, as in a container.
    pub fn keep() -> io::Result<Self> {
        let mut request = OpenOptions::new().write(true).open(LATENCY)?;
        // Microseconds, a 32-bit number.
        request.write_all(&0_i32.to_ne_bytes())?;
        Ok(Self { _request: request })
    }
}
