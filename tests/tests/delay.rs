//! A proxy that holds bytes for a known time: the agent sees that time, in the right direction and segment.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bed::delay::Held;
use bed::netns::{Bed, Family};
use bed::process::Child;
use bed::tools;
use serde_json::Value;

const PROGRAMS: &str = env!("CARGO_BIN_EXE_bed");
const LONGEST: Duration = Duration::from_secs(10);

/// The budget of the `hop` against the wire, used here of every segment against the proxy's own log.
const BUDGET_NS: f64 = 2_000.0;
const BUDGET_SHARE: f64 = 0.01;
/// What the kernel may add on both ends while the proxy holds nothing: a wake-up on a busy machine. A fifth of the
/// shortest delay, so a delay in the wrong segment does not pass for it.
const KERNEL_MOST_NS: f64 = 200_000.0;

/// One run: how long each path is held, and how many requests make that certain in about two seconds.
struct Case {
    request_us: u64,
    response_us: u64,
    requests: u64,
}

const CASES: [Case; 7] = [
    Case { request_us: 0, response_us: 0, requests: 4_000 },
    Case { request_us: 1_000, response_us: 0, requests: 1_500 },
    Case { request_us: 0, response_us: 1_000, requests: 1_500 },
    Case { request_us: 5_000, response_us: 0, requests: 300 },
    Case { request_us: 0, response_us: 5_000, requests: 300 },
    Case { request_us: 50_000, response_us: 0, requests: 40 },
    Case { request_us: 0, response_us: 50_000, requests: 40 },
];

#[test]
fn a_known_delay_is_seen_where_it_is_over_ipv4() {
    for case in &CASES {
        check(case, Family::V4);
    }
}

#[test]
fn a_known_delay_is_seen_where_it_is_over_ipv6() {
    for case in &CASES {
        check(case, Family::V6);
    }
}

fn check(case: &Case, family: Family) {
    let name = format!("{family:?}, request held {} us, response {} us", case.request_us, case.response_us);
    let (held, document) = run(case, family).unwrap_or_else(|error| panic!("{name}: {error:#}"));
    let matching = &document["matching"];
    let messages = 2 * case.requests;
    assert_eq!(
        matching["exact"], messages,
        "{name}: one message at a time has one possible cause: {matching}"
    );
    assert_eq!(matching["seen"], messages, "{name}: {matching}");

    for (direction, log_ns) in [("request", held.request_ns), ("response", held.response_ns)] {
        assert_eq!(log_ns.len() as u64, case.requests, "{name}: bursts in the proxy's log, {direction}");
        let log = Summary::of(log_ns);
        let segment = |segment| Summary::in_document(&document, direction, segment, case.requests);
        let [proxy, queue, egress, hop] = ["proxy", "queue", "egress", "hop"].map(segment);

        // The proxy's clock starts after the receive call returned and stops before the send call begins, the
        // agent's when the kernel copied the bytes and when it takes them: the agent's time is longer by the end
        // of one system call and the beginning of another, about 1 us.
        proxy.assert_near(&log, &format!("{name}: {direction}.proxy"));
        // The hop is all three together, message by message, so it is the log's time and what the kernel did.
        let true_ns = log.mean + queue.mean + egress.mean;
        assert_near(hop.mean, true_ns, &format!("{name}: {direction}.hop mean"));
        for (what, kernel) in [("queue", queue), ("egress", egress)] {
            assert!(
                kernel.p50 < KERNEL_MOST_NS,
                "{name}: {direction}.{what} is {} us at p50, but nothing is held there",
                kernel.p50 / 1e3
            );
        }
    }
}

/// Starts all of it, lets the agent measure the load, and returns the proxy's log and the agent's document.
fn run(case: &Case, family: Family) -> Result<(Held, Value)> {
    let dir = dir(case, family)?;
    let bed = Bed::new()?;
    let (listen, upstream) = (Bed::proxy_address(family), Bed::server_address(family));

    let mut backend = bed.server.command(PROGRAMS);
    backend.args(["backend", "--listen", &upstream.to_string()]);
    let mut backend = Child::start("backend", &backend, &dir)?;
    backend.wait_for_port(upstream, LONGEST)?;

    let mut toy = bed.proxy.command(PROGRAMS);
    toy.args(["delayproxy", "--listen", &listen.to_string(), "--upstream", &upstream.to_string()]);
    toy.args(["--request-us", &case.request_us.to_string(), "--response-us", &case.response_us.to_string()]);
    let mut toy = Child::start("delayproxy", &toy, &dir)?;
    toy.wait_for_port(listen, LONGEST)?;

    let mut agent = Command::new(tools::agent()?);
    agent.args(["run", "--proxy", &toy.pid().to_string(), "--out"]).arg(&dir).arg("--");
    agent.args(bed.client.wrap(PROGRAMS));
    agent.args(["load", "--target", &listen.to_string(), "--connections", "1", "--seconds", "60"]);
    agent.args(["--requests", &case.requests.to_string()]);
    let mut agent = Child::start("smp-agent", &agent, &dir)?;
    let status = agent.wait_for(Duration::from_secs(90))?;
    ensure!(status.success(), "the agent failed ({status}){}", agent.tail());

    let log = toy.log().context("the delay proxy has no log")?.to_owned();
    let held = toy.until(LONGEST, "log its connection", |_toy| {
        let said = fs::read_to_string(&log)?;
        let whole = said.rsplit_once('\n').map_or("", |(whole, _)| whole);
        Ok(whole.lines().find_map(|line| serde_json::from_str(line).ok()))
    })?;
    let document = dir.join("overhead.json");
    let document =
        fs::read(&document).with_context(|| format!("the agent left no {}", document.display()))?;
    Ok((held, serde_json::from_slice(&document)?))
}

fn dir(case: &Case, family: Family) -> Result<PathBuf> {
    let name = format!("delay-{family:?}-{}-{}", case.request_us, case.response_us);
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    match fs::remove_dir_all(&dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        _ => fs::create_dir_all(&dir)?,
    }
    Ok(dir)
}

/// Of one distribution, all in ns.
struct Summary {
    mean: f64,
    p50: f64,
    p90: f64,
}

impl Summary {
    fn of(mut values_ns: Vec<u64>) -> Self {
        values_ns.sort_unstable();
        let rank = |percent: usize| values_ns[(values_ns.len() * percent).div_ceil(100) - 1] as f64;
        let mean = values_ns.iter().sum::<u64>() as f64 / values_ns.len() as f64;
        Self { mean, p50: rank(50), p90: rank(90) }
    }

    fn in_document(document: &Value, direction: &str, segment: &str, count: u64) -> Self {
        let hops = document["hops"].as_array().expect("hops");
        let mut fitting =
            hops.iter().filter(|hop| hop["direction"] == direction && hop["segment"] == segment);
        let (hop, other) = (fitting.next(), fitting.next());
        let hop = hop.unwrap_or_else(|| panic!("no {direction}.{segment} in the agent's document"));
        assert!(other.is_none(), "more than one {direction}.{segment} for one proxy");
        assert_eq!((&hop["unit"], &hop["count"]), (&"ns".into(), &count.into()), "{direction}.{segment}");
        let number = |name: &str| hop[name].as_f64().unwrap_or_else(|| panic!("{name} is no number: {hop}"));
        Self { mean: number("mean"), p50: number("p50"), p90: number("p90") }
    }

    fn assert_near(&self, truth: &Self, what: &str) {
        for (stat, seen_ns, true_ns) in
            [("mean", self.mean, truth.mean), ("p50", self.p50, truth.p50), ("p90", self.p90, truth.p90)]
        {
            assert_near(seen_ns, true_ns, &format!("{what} {stat}"));
        }
    }
}

fn assert_near(seen_ns: f64, true_ns: f64, what: &str) {
    let error_ns = seen_ns - true_ns;
    assert!(
        error_ns.abs() <= BUDGET_NS.max(true_ns * BUDGET_SHARE),
        "{what}: the agent says {:.1} us, the truth is {:.1} us",
        seen_ns / 1e3,
        true_ns / 1e3
    );
}
