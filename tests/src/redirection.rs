//! Redirection: connections to a server reach a proxy without the client's knowledge, as the init containers of meshes
//! set it up.

use std::io::Write as _;
use std::net::SocketAddr;
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};

use crate::netns::{Bed, Family};
use crate::tools;

/// Marks the packets that stay here although their address is another host's.
const MARK: u32 = 1;
/// The routing table for them.
const TABLE: &str = "100";

/// Which kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Redirection {
    /// The kernel gives packets the proxy's own address: that is what the accepted socket has.
    Redirect,
    /// The same of what the proxy's own host sends, unless it is the proxy: an application with its sidecar.
    RedirectOwn,
    /// Packets keep the server's address, and so has the accepted socket; the proxy's listener is transparent.
    Tproxy,
}

impl Redirection {
    /// The user whose connections [`Redirection::RedirectOwn`] leaves alone: the proxy.
    pub const PROXY_USER: u32 = 1337;

    /// Leads connections to `server`, from the bed's client or, of [`Redirection::RedirectOwn`], from the proxy's own
    /// namespace, to `port` there.
    ///
    /// # Errors
    /// Without nftables or when the kernel refuses.
    pub fn install(self, bed: &Bed, server: SocketAddr, port: u16) -> Result<()> {
        let (family, version, ip) =
            if server.is_ipv4() { (Family::V4, "-4", "ip") } else { (Family::V6, "-6", "ip6") };
        let to_server = format!("{ip} daddr {} tcp dport {}", server.ip(), server.port());
        let chain = match self {
            Self::Redirect => {
                format!("type nat hook prerouting priority dstnat; {to_server} redirect to :{port}")
            }
            Self::RedirectOwn => {
                let user = Self::PROXY_USER;
                format!(
                    "type nat hook output priority -100; meta skuid != {user} {to_server} redirect to :{port}"
                )
            }
            Self::Tproxy => {
                bed.proxy.ip([version, "rule", "add", "fwmark", &MARK.to_string(), "lookup", TABLE])?;
                bed.proxy.ip([version, "route", "add", "local", "default", "dev", "lo", "table", TABLE])?;
                format!(
                    "type filter hook prerouting priority mangle; \
                     {to_server} meta mark set {MARK} tproxy {ip} to :{port} accept"
                )
            }
        };
        if self != Self::RedirectOwn {
            let proxy = Bed::proxy_ip(family).to_string();
            bed.client.ip([version, "route", "add", &server.ip().to_string(), "via", &proxy])?;
        }
        let mut nft = bed.proxy.command(tools::nft()?);
        nft.args(["-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut nft = nft.spawn().context("nft does not start")?;
        let rules = format!("table inet redirection {{ chain redirection {{ {chain}; }}\n}}\n");
        // Closed at the end of the statement, which is the end of the rules.
        nft.stdin.take().context("nft has no input")?.write_all(rules.as_bytes())?;
        let output = nft.wait_with_output()?;
        ensure!(output.status.success(), "nft refuses {rules}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }
}
