//! Load that saturates: wrk, and what it says. Load at a fixed rate: the bed's own, which knows when each request was due.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, bail, ensure};
use bed::load::{Tally, Took};
use bed::netns::Netns;
use bed::{process, tools};

/// How often requests are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// Each connection's next one when the last is answered.
    Saturating,
    /// So many per second over all connections.
    Fixed(u32),
}

/// Requests over so many connections.
pub struct Load<'a> {
    pub client: &'a Netns,
    pub target: SocketAddr,
    pub connections: u32,
    pub seconds: u32,
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Answered {
    pub requests: u64,
    pub requests_per_second: f64,
    /// At a fixed rate alone.
    pub took: Option<Took>,
}

impl Load<'_> {
    /// Runs it to its end.
    ///
    /// # Errors
    /// When the load generator fails, says nothing that is understood, or got answers that are none.
    pub fn run(&self, pace: Pace) -> Result<Answered> {
        match pace {
            Pace::Saturating => self.saturate(),
            Pace::Fixed(rate) => self.pace(rate),
        }
    }

    fn saturate(&self) -> Result<Answered> {
        let mut command = self.client.command(tools::wrk()?);
        command.args([
            "-t2",
            &format!("-c{}", self.connections),
            &format!("-d{}s", self.seconds),
            &format!("http://{}/", self.target),
        ]);
        let said = process::output(&mut command)?;
        parse(&said).with_context(|| format!("wrk said:\n{said}"))
    }

    fn pace(&self, rate: u32) -> Result<Answered> {
        let seconds = format!("--seconds={}", self.seconds);
        let tally = own(
            self.client,
            self.target,
            self.connections,
            &["--protocol=h1", &seconds, &format!("--rate={rate}")],
        )?;
        let requests_per_second = tally.requests as f64 / tally.seconds;
        Ok(Answered { requests: tally.requests, requests_per_second, took: tally.took })
    }
}

/// So many requests, each over a connection of its own, so many at once.
///
/// # Errors
/// When one is not answered, or they are not done within ten minutes.
pub fn churn(client: &Netns, target: SocketAddr, connections: u32, requests: u64) -> Result<()> {
    let many = format!("--requests={requests}");
    let tally = own(client, target, connections, &["--protocol=h1-close", "--seconds=600", &many])?;
    ensure!(tally.requests >= requests, "only {} of {requests} requests were answered", tally.requests);
    Ok(())
}

/// The bed's own load.
fn own(client: &Netns, target: SocketAddr, connections: u32, arguments: &[&str]) -> Result<Tally> {
    let mut command = client.command(tools::target().join("release/bed"));
    command.args(["load", &format!("--target={target}"), &format!("--connections={connections}")]);
    let said = process::output(command.args(arguments))?;
    let tally: Tally = serde_json::from_str(&said).with_context(|| format!("the load said:\n{said}"))?;
    let first_error = tally.first_error.as_deref().unwrap_or("it sent nothing");
    ensure!(tally.errors == 0 && tally.requests > 0, "the load had {} errors: {first_error}", tally.errors);
    Ok(tally)
}

fn parse(said: &str) -> Result<Answered> {
    let line = |has: &str| said.lines().find(|line| line.contains(has)).map(str::trim);
    if let Some(errors) = line("Non-2xx").or_else(|| line("Socket errors")) {
        bail!("not all requests were answered ({errors})");
    }
    let first = |line: &str| line.split_whitespace().next().map(str::to_owned);
    let requests = line(" requests in ").and_then(first).context("no number of requests")?;
    let rate = line("Requests/sec:").and_then(|line| line.split_whitespace().nth(1)).context("no rate")?;
    Ok(Answered { requests: requests.parse()?, requests_per_second: rate.parse()?, took: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "\
Running 2s test @ http://10.0.0.2:8080/
  2 threads and 16 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     0.90ms    0.40ms   9.00ms   80.00%
  37150 requests in 2.00s, 6.10MB read
Requests/sec:  18571.40
Transfer/sec:      3.05MB
";

    #[test]
    fn what_wrk_says_is_understood() {
        let understood = Answered { requests: 37_150, requests_per_second: 18_571.4, took: None };
        assert_eq!(parse(SAID).unwrap(), understood);
    }

    #[test]
    fn errors_are_none() {
        let said = format!("{SAID}  Non-2xx or 3xx responses: 7\n");
        assert!(parse(&said).unwrap_err().to_string().contains("Non-2xx or 3xx responses: 7"));
        assert!(parse("").is_err());
    }
}
