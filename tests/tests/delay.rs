//! A proxy that holds bytes for a known time: the agent sees that time, in the right direction and segment.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bed::delay::{Hold, Log};
use bed::netns::{Bed, Family};
use bed::process::Child;
use bed::redirection::Redirection;
use bed::tools;
use serde_json::Value;

const PROGRAMS: &str = env!("CARGO_BIN_EXE_bed");
const LONGEST: Duration = Duration::from_secs(10);

/// The budget of the `hop` against the wire, used here of a held path against the proxy's own log.
const BUDGET_NS: f64 = 2_000.0;
const BUDGET_SHARE: f64 = 0.01;
/// Largest error of a quantile of the agent's histogram, which has buckets; its mean is exact.
const BUCKET_SHARE: f64 = 0.008;
/// Where the proxy listens for what is redirected, as Istio's does.
const REDIRECTED_PORT: u16 = 15_006;
/// What the kernel may add on both ends while the proxy holds nothing: a wake-up on a busy machine, or of a virtual
/// processor that was idle (213 us were seen). Less than half of the shortest delay, so a delay in the wrong segment does not
/// pass for it.
const KERNEL_MOST_NS: f64 = 400_000.0;
/// Less than half of the shortest delay there; with other work on this machine it was seen to be 6 ms.
const EMULATED_KERNEL_MOST_NS: f64 = 8_000_000.0;

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

/// Delays that stand out against what an emulated kernel adds.
const EMULATED_CASES: [Case; 3] = [
    Case { request_us: 0, response_us: 0, requests: 500 },
    Case { request_us: 20_000, response_us: 0, requests: 60 },
    Case { request_us: 0, response_us: 20_000, requests: 60 },
];

#[test]
fn a_known_delay_is_seen_where_it_is_over_ipv4() {
    check_all(Family::V4);
}

#[test]
fn a_known_delay_is_seen_where_it_is_over_ipv6() {
    check_all(Family::V6);
}

#[test]
fn a_connection_redirected_to_the_proxy_is_as_any_other() {
    check_redirected(Redirection::Redirect);
}

#[test]
fn a_connection_of_the_proxys_own_host_redirected_to_it_is_as_any_other() {
    check_redirected(Redirection::RedirectOwn);
}

#[test]
fn a_connection_that_keeps_the_servers_address_is_as_any_other() {
    check_redirected(Redirection::Tproxy);
}

fn check_all(family: Family) {
    let cases: &[Case] = if tools::emulated() { &EMULATED_CASES } else { &CASES };
    for case in cases {
        check(case, family, None);
    }
}

/// The first message counts as all others do: the connection is known for the proxy's before its first use.
fn check_redirected(redirection: Redirection) {
    let cases = if tools::emulated() { &EMULATED_CASES[1..] } else { &CASES[3..5] };
    // Each way once.
    for (case, family) in cases.iter().zip([Family::V4, Family::V6]) {
        check(case, family, Some(redirection));
    }
}

fn check(case: &Case, family: Family, redirection: Option<Redirection>) {
    let how = redirection.map(|redirection| format!(", {redirection:?}")).unwrap_or_default();
    let name =
        format!("{family:?}{how}, request held {} us, response {} us", case.request_us, case.response_us);
    let (log, document) = run(case, family, redirection).unwrap_or_else(|error| panic!("{name}: {error:#}"));
    let matching = &document["matching"];
    let messages = 2 * case.requests;
    let missed = &document["self"]["bpf_missed"];
    let hops = ["request", "response"].map(|direction| counted(&document, direction));
    assert_eq!(
        matching["exact"], messages,
        "{name}: one message at a time has one possible cause: {matching}, of requests and responses {hops:?} hops, \
         {missed} runs of programs skipped"
    );
    assert_eq!(matching["seen"], messages, "{name}: {matching}");

    let paths = [("request", case.request_us, log.request), ("response", case.response_us, log.response)];
    for (direction, delay_us, holds) in paths {
        let what = |segment: &str| format!("{name}: {direction}.{segment}");
        assert_eq!(holds.len() as u64, case.requests, "{name}: {direction} bursts in the proxy's log");
        let held = Summary::of(&holds, |hold| hold.held_ns);
        let with_calls = Summary::of(&holds, |hold| hold.with_calls_ns);
        let [proxy, queue, egress, hop] = ["proxy", "queue", "egress", "hop"]
            .map(|segment| Summary::in_document(&document, direction, segment, case.requests));

        // The agent stamps inside the two system calls between which the proxy holds the bytes: each message takes
        // longer than the proxy's own time and not as long as that with the calls, so every rank does too.
        proxy.assert_between(&held, &with_calls, &what("proxy"));
        if delay_us > 0 && !tools::emulated() {
            // The bias of that: the end of one call and the beginning of the other, 1 to 3 us. Within the budget, but
            // for emulated machines, where each call takes some 100 us.
            proxy.assert_within_budget(&held, &what("proxy"));
        }
        // The hop is all three together, message by message, so less the kernel's shares it is the proxy's.
        let of_hop = hop.mean - queue.mean - egress.mean;
        assert!(
            (of_hop - proxy.mean).abs() < 5.0,
            "{}: without queue and egress {of_hop} ns in the mean, the proxy segment {} ns",
            what("hop"),
            proxy.mean
        );
        let kernel_most_ns = if tools::emulated() { EMULATED_KERNEL_MOST_NS } else { KERNEL_MOST_NS };
        for (segment, kernel) in [("queue", queue), ("egress", egress)] {
            assert!(
                kernel.p50 < kernel_most_ns,
                "{} is {} us at p50, but nothing is held there",
                what(segment),
                kernel.p50 / 1e3
            );
        }
    }
}

/// Starts all of it, lets the agent measure the load, and returns the proxy's log and the agent's document.
fn run(case: &Case, family: Family, redirection: Option<Redirection>) -> Result<(Log, Value)> {
    let dir = dir(case, family, redirection)?;
    let bed = Bed::new()?;
    let upstream = Bed::server_address(family);
    let any = if family == Family::V4 { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
    // Whoever is redirected calls the server.
    let (listen, target) = match redirection {
        None => (Bed::proxy_address(family), Bed::proxy_address(family)),
        Some(redirection) => {
            redirection.install(&bed, upstream, REDIRECTED_PORT)?;
            (SocketAddr::new(any, REDIRECTED_PORT), upstream)
        }
    };
    let own = redirection == Some(Redirection::RedirectOwn);
    let (client, user) = if own { (&bed.proxy, Redirection::PROXY_USER) } else { (&bed.client, 0) };

    let mut backend = bed.server.command(PROGRAMS);
    backend.args(["backend", "--listen", &upstream.to_string()]);
    let mut backend = Child::start("backend", &backend, &dir)?;
    backend.wait_for_port(upstream, LONGEST)?;

    let mut toy = bed.proxy.command("/usr/bin/setpriv");
    toy.args(["--reuid", &user.to_string(), PROGRAMS, "delayproxy", "--listen", &listen.to_string()]);
    toy.args(["--upstream", &upstream.to_string()]);
    if redirection == Some(Redirection::Tproxy) {
        toy.arg("--transparent");
    }
    toy.args(["--request-us", &case.request_us.to_string(), "--response-us", &case.response_us.to_string()]);
    let mut toy = Child::start("delayproxy", &toy, &dir)?;
    toy.wait_for_port(listen, LONGEST)?;

    let mut agent = Command::new(tools::agent()?);
    agent.args(["run", "--proxy", &toy.pid().to_string(), "--out"]).arg(&dir).arg("--");
    agent.args(client.wrap(PROGRAMS));
    agent.args(["load", "--target", &target.to_string(), "--connections", "1", "--seconds", "60"]);
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

/// How many hops of a direction the agent saw.
fn counted(document: &Value, direction: &str) -> u64 {
    let hops = document["hops"].as_array().into_iter().flatten();
    let mut hops = hops.filter(|hop| hop["direction"] == direction && hop["segment"] == "hop");
    hops.next().and_then(|hop| hop["count"].as_u64()).unwrap_or(0)
}

fn dir(case: &Case, family: Family, redirection: Option<Redirection>) -> Result<PathBuf> {
    let name = format!("delay-{family:?}-{redirection:?}-{}-{}", case.request_us, case.response_us);
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
    fn of(holds: &[Hold], time_ns: fn(&Hold) -> u64) -> Self {
        let mut times_ns: Vec<u64> = holds.iter().map(time_ns).collect();
        times_ns.sort_unstable();
        let rank = |percent: usize| times_ns[(times_ns.len() * percent).div_ceil(100) - 1] as f64;
        let mean = times_ns.iter().sum::<u64>() as f64 / times_ns.len() as f64;
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

    /// Name and value of each number, and how far it may be off by itself.
    fn stats(&self) -> [(&'static str, f64, f64); 3] {
        [("mean", self.mean, 0.0), ("p50", self.p50, BUCKET_SHARE), ("p90", self.p90, BUCKET_SHARE)]
    }

    fn assert_between(&self, least: &Self, most: &Self, what: &str) {
        for (((stat, seen, off), (_, least, _)), (_, most, _)) in
            self.stats().into_iter().zip(least.stats()).zip(most.stats())
        {
            assert!(
                least * (1.0 - off) <= seen && seen <= most * (1.0 + off),
                "{what} {stat}: the agent says {:.1} us, the truth is between {:.1} and {:.1} us",
                seen / 1e3,
                least / 1e3,
                most / 1e3
            );
        }
    }

    /// The p50: a busy machine comes between the agent's stamps and the proxy's now and then, which shows in the mean too
    /// (12 us once, of messages held for 1 ms).
    fn assert_within_budget(&self, truth: &Self, what: &str) {
        let ([_, (stat, seen, off), _], [_, (_, truth, _), _]) = (self.stats(), truth.stats());
        assert!(
            (seen - truth).abs() <= truth * off + BUDGET_NS.max(truth * BUDGET_SHARE),
            "{what} {stat}: the agent says {:.1} us, the truth is {:.1} us",
            seen / 1e3,
            truth / 1e3
        );
    }
}
