//! The per-hop table of a document, for a terminal of 100 columns. Plain text: no colour to be turned off.

use std::fmt::Write as _;

use comfy_table::{CellAlignment, Table, presets};

use crate::document::{CoTenantCost, Document, Hop, Shares};
use crate::window::Matching;

const NS_PER_US: f64 = 1e3;
const BYTES_PER_MIB: f64 = 1_048_576.0;
/// From so much of a CPU on somebody beside the proxies is named.
const NOISY_CORES: f64 = 0.05;
/// Where running text is broken.
const COLUMNS: usize = 98;
/// A blank at which it is not: no-break space.
const UNBROKEN: &str = "\u{a0}";

const HEADER: [&str; 9] = ["direction", "segment", "count", "mean", "p50", "p90", "p99", "p99.9", "max"];

/// The whole report, ending in a newline.
pub fn render(document: &Document) -> String {
    let mut out = String::new();
    for warning in &document.warnings {
        paragraph(&mut out, "WARNING: ", warning);
    }
    if !document.warnings.is_empty() {
        out.push('\n');
    }
    for proxy in &document.proxies {
        let pod = proxy.pod.as_ref().map_or_else(String::new, |pod| format!(" in {}", pod.full_name()));
        line(&mut out, &format!("{} (pid {}, {}){pod}, latencies in us", proxy.proxy, proxy.pid, proxy.exe));
        let mut hops =
            document.hops.iter().filter(|hop| hop.pid == proxy.pid && hop.proxy == proxy.proxy).peekable();
        if hops.peek().is_none() {
            paragraph(&mut out, "  ", &why_no_latency(&proxy.matching));
        } else {
            table(hops).lines().for_each(|row| line(&mut out, row.trim_end()));
        }
        paragraph(&mut out, "  messages: ", &classes(&proxy.matching));
        out.push('\n');
    }
    costs(&mut out, document);
    let node = &document.node.identity;
    let window = &document.window;
    paragraph(
        &mut out,
        "",
        &format!("{:.1} s from {:.0} on {} (Linux {})", window.seconds, window.start, node.name, node.kernel),
    );
    paragraph(&mut out, "measuring cost: ", &cost(document));
    out
}

const COSTS: [&str; 10] =
    ["CPU", "cores", "user", "system", "softirq", "wait p99", "requests/s", "us/request", "MiB", "peak"];

/// What each proxy cost, then the node.
fn costs(out: &mut String, document: &Document) {
    let proxies: Vec<_> =
        document.proxies.iter().filter_map(|proxy| Some((proxy, proxy.cpu.as_ref()?))).collect();
    let Some(shares) = &document.node.cost.shares else { return };
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(COSTS);
    let nothing = || "-".to_owned();
    let ms = |ns: u64| format!("{:.1}", ns as f64 / 1e6);
    let mib = |bytes: u64| format!("{:.1}", bytes as f64 / BYTES_PER_MIB);
    for (proxy, cpu) in proxies {
        let per_request = &proxy.requests.cpu_us_per_request;
        table.add_row([
            format!("{} ({})", proxy.proxy, proxy.pid),
            format!("{:.3}", cpu.cores),
            cpu.user_ns.map_or_else(nothing, ms),
            cpu.system_ns.map_or_else(nothing, ms),
            ms(cpu.softirq_ns),
            cpu.run_queue_wait.as_ref().map_or_else(nothing, |wait| us(wait.p99.min(wait.max) as f64)),
            grouped(rounded(proxy.requests.requests_per_second)),
            per_request.map_or_else(nothing, |each| format!("{:.1}", each.total)),
            mib(proxy.memory.rss_bytes),
            mib(proxy.memory.rss_peak_bytes),
        ]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    line(out, "cost: CPU time in ms, wait for a CPU in us, resident memory in MiB");
    if !document.proxies.is_empty() {
        table.lines().for_each(|row| line(out, row.trim_end()));
    }
    paragraph(out, "  node: ", &of_node(shares, document.window.seconds));
    let co_tenants = co_tenants(&document.node.cost.co_tenants);
    if !co_tenants.is_empty() {
        paragraph(out, "  others: ", &co_tenants);
    }
    out.push('\n');
}

fn of_node(shares: &Shares, seconds: f64) -> String {
    let cores = |ns: u64| if seconds > 0.0 { ns as f64 / (seconds * 1e9) } else { 0.0 };
    let all = cores(shares.busy_ns() + shares.idle_ns);
    format!(
        "{:.3} of {all:.2} CPUs busy = proxies {:.3} + others {:.3} + softirqs {:.3} (of these for proxies {:.3}, other TCP \
         {:.3}, unattributed {:.3})",
        cores(shares.busy_ns()),
        cores(shares.proxies_ns),
        cores(shares.others_ns),
        cores(shares.softirq_ns),
        cores(shares.softirq_proxies_ns),
        cores(shares.softirq_others_ns),
        cores(shares.softirq_unattributed_ns),
    )
}

/// Those among them that took a share worth a look; empty where none did.
fn co_tenants(listed: &[CoTenantCost]) -> String {
    let named = listed.iter().filter_map(|CoTenantCost { name, processes, cost }| {
        let cores = cost.cpu_cores.filter(|&cores| cores >= NOISY_CORES)?;
        let times = if *processes > 1 { format!(" ({processes})") } else { String::new() };
        Some(format!("{name}{times} {cores:.3}").replace(' ', UNBROKEN))
    });
    named.collect::<Vec<_>>().join(", ")
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate, never negative")]
fn rounded(rate: f64) -> u64 {
    rate.round() as u64
}

fn table<'a>(hops: impl Iterator<Item = &'a Hop>) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(HEADER);
    let mut previous = None;
    for hop in hops {
        let direction = hop.direction.as_str();
        let first = previous.replace(hop.direction) != Some(hop.direction);
        // A percentile is the top of its bucket, which may reach beyond the exact maximum: nothing to show a person.
        let percentile = |ns: u64| us(ns.min(hop.max) as f64);
        table.add_row([
            if first { direction.to_owned() } else { String::new() },
            hop.segment.as_str().to_owned(),
            grouped(hop.count),
            us(hop.mean),
            percentile(hop.p50),
            percentile(hop.p90),
            percentile(hop.p99),
            percentile(hop.p999),
            us(hop.max as f64),
        ]);
    }
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn why_no_latency(matching: &Matching) -> String {
    let reason = if matching.seen > 0 {
        "none of its messages could be matched"
    } else if matching.local > 0 {
        "it answered everything itself and forwarded nothing"
    } else {
        "it saw no message: check that the load goes through it, over TCP, and lasts as long as the window"
    };
    format!("no latency: {reason}.")
}

fn classes(matching: &Matching) -> String {
    let share = |count: u64| {
        if matching.seen == 0 {
            return grouped(count);
        }
        let percent = 100.0 * count as f64 / matching.seen as f64;
        // A few must not look like none, nor almost all like all.
        let shown = match count {
            0 => "0 %".to_owned(),
            _ if count == matching.seen => "100 %".to_owned(),
            _ => format!("{:.2} %", percent.clamp(0.01, 99.99)),
        };
        format!("{} ({shown})", grouped(count))
    };
    let class = |name, count| format!("{name} {}", share(count)).replace(' ', UNBROKEN);
    let mut text = format!(
        "{} seen = {} + {} + {} + {} + {}",
        grouped(matching.seen),
        class("exact", matching.exact),
        class("ambiguous", matching.ambiguous),
        class("unmatched", matching.unmatched),
        class("lost", matching.lost_total()),
        class("in flight", matching.in_flight),
    );
    if !matching.lost.is_empty() {
        let reasons: Vec<_> =
            matching.lost.iter().map(|(reason, &count)| format!("{reason} {}", grouped(count))).collect();
        let _infallible = write!(text, "; lost by reason: {}", reasons.join(", "));
    }
    let _infallible = write!(text, "; answered by the proxy itself: {}", grouped(matching.local));
    text
}

fn cost(document: &Document) -> String {
    let cost = &document.self_cost;
    let requests: u64 = document.proxies.iter().map(|proxy| proxy.requests.requests).sum();
    let bpf = match (cost.bpf_ns, cost.bpf_runs) {
        (Some(ns), Some(runs)) if runs > 0 && requests > 0 => format!(
            "BPF {} us and {:.1} runs per proxied request ({:.0} ns a run)",
            us(ns as f64 / requests as f64),
            runs as f64 / requests as f64,
            ns as f64 / runs as f64
        ),
        (Some(ns), Some(runs)) if runs > 0 => {
            format!("BPF {:.0} ns a run, {} runs", ns as f64 / runs as f64, grouped(runs))
        }
        _ => "BPF unknown (no run was counted; is kernel.bpf_stats_enabled 0?)".to_owned(),
    };
    let cpu = if document.window.seconds > 0.0 {
        format!("{:.2} % of a core", 100.0 * cost.cpu_ns as f64 / (document.window.seconds * 1e9))
    } else {
        format!("{:.1} ms", cost.cpu_ns as f64 / 1e6)
    };
    let [memory, maps] = [cost.rss_bytes, cost.map_bytes].map(|bytes| bytes as f64 / BYTES_PER_MIB);
    format!("{bpf}; agent CPU {cpu}, memory {memory:.1} MiB, maps in the kernel {maps:.1} MiB")
}

/// A latency in us: what two significant digits can carry, and one more for the eye.
fn us(ns: f64) -> String {
    let us = ns / NS_PER_US;
    if us < 10.0 {
        format!("{us:.2}")
    } else if us < 100.0 {
        format!("{us:.1}")
    } else {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "at least 100, below 2^64 ns"
        )]
        let whole = us.round() as u64;
        grouped(whole)
    }
}

/// 1234567 -> 1,234,567.
fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.char_indices() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

fn line(out: &mut String, text: &str) {
    out.push_str(text);
    out.push('\n');
}

/// `text` after `start`, broken at blanks but not at [`UNBROKEN`] ones, continued under its beginning.
fn paragraph(out: &mut String, start: &str, text: &str) {
    let indent = " ".repeat(start.len());
    let mut current = start.to_owned();
    for word in text.split(' ') {
        let begun = current.len() > indent.len();
        if begun && current.chars().count() + 1 + word.chars().count() > COLUMNS {
            line(out, &current);
            current.clone_from(&indent);
        } else if begun {
            current.push(' ');
        }
        current.push_str(&word.replace(UNBROKEN, " "));
    }
    line(out, &current);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::co_tenants::{CoTenant, CoTenants};
    use crate::document::tests::{document, window};
    use crate::hop::{Direction, Segment, series_index};
    use crate::kubernetes::Pod;

    #[test]
    fn whole_report() {
        let want = "\
envoy (pid 4242, /usr/bin/envoy), latencies in us
 direction  segment  count  mean   p50   p90   p99  p99.9    max
 request    hop      1,000   501   502   901   991    999  1,000
            queue    1,000  50.0  50.2  90.1  99.3    100    100
  messages: 1,004 seen = exact 990 (98.61 %) + ambiguous 10 (1.00 %) + unmatched 1 (0.10 %) +
            lost 2 (0.20 %) + in flight 1 (0.10 %); lost by reason: set_full 2; answered by the
            proxy itself: 7

nginx (pid 77, /usr/bin/nginx), latencies in us
  no latency: it saw no message: check that the load goes through it, over TCP, and lasts as long
  as the window.
  messages: 0 seen = exact 0 + ambiguous 0 + unmatched 0 + lost 0 + in flight 0; answered by the
            proxy itself: 0

cost: CPU time in ms, wait for a CPU in us, resident memory in MiB
 CPU           cores   user  system  softirq  wait p99  requests/s  us/request   MiB  peak
 envoy (4242)  0.125  150.0    50.0     50.0      8.00         500       250.0  40.0  44.0
 nginx (77)    0.000      -       -      0.0         -           0           -   0.0   0.0
  node: 0.340 of 1.99 CPUs busy = proxies 0.100 + others 0.200 + softirqs 0.040 (of these for
        proxies 0.025, other TCP 0.000, unattributed 0.015)

2.0 s from 2026-11-23T10:00:00Z on node-a (Linux 6.18.44)
measuring cost: BPF 1.80 us and 18.0 runs per proxied request (100 ns a run); agent CPU 0.20 % of
                a core, memory 9.0 MiB, maps in the kernel 5.0 MiB
";
        let got = render(&document(&window()));
        assert_eq!(got, want);
    }

    #[test]
    fn a_pod_is_in_the_title() {
        let mut window = window();
        let (name, namespace) = ("cart-0".to_owned(), "shop".to_owned());
        window.proxies[0].proxy.pod = Some(Pod { name, namespace, ..Pod::default() });
        let report = render(&document(&window));
        let title = "envoy (pid 4242, /usr/bin/envoy) in shop/cart-0, latencies in us\n";
        assert!(report.starts_with(title), "{report}");
    }

    #[test]
    fn who_takes_much_of_a_cpu_is_named_under_the_node() {
        let mut window = window();
        let co_tenant = |name: &str, processes, ms: u64| CoTenant {
            name: name.into(),
            processes,
            cpu_ns: ms * 1_000_000,
        };
        // Of 2 s: 4 % of a CPU are not worth a look.
        let listed =
            vec![co_tenant("java", 1, 1_900), co_tenant("tar: 2", 12, 100), co_tenant("cron", 3, 80)];
        window.co_tenants = Some(CoTenants { listed, ..CoTenants::default() });
        let report = render(&document(&window));
        assert!(report.contains("\n  others: java 0.950, tar: 2 (12) 0.050\n\n"), "{report}");
    }

    #[test]
    fn precision_follows_the_size() {
        let got = [0.0, 94.0, 9_994.0, 12_345.0, 99_949.0, 187_500.0, 1_234_567.0, 61e9].map(us);
        assert_eq!(got, ["0.00", "0.09", "9.99", "12.3", "99.9", "188", "1,235", "61,000,000"]);
    }

    #[test]
    fn warnings_come_first_and_lines_fit() {
        let mut window = window();
        window.proxies[0].matching.unmatched = 100;
        window.proxies[0].hops[series_index(Direction::Response, Segment::Hop)].record(59_999_999_999);
        let report = render(&document(&window));
        assert!(report.starts_with("WARNING: envoy (pid 4242): 10.2 % of 1004 messages have no latency"));
        assert!(report.lines().all(|line| line.chars().count() <= 100), "{report}");
    }

    #[test]
    fn without_a_proxy_it_still_says_something() {
        let mut window = window();
        window.proxies.clear();
        let report = render(&document(&window));
        assert!(report.starts_with("WARNING: no proxy was found"), "{report}");
    }

    #[test]
    fn few_are_not_none() {
        let matching = Matching { seen: 1_000_000, exact: 999_999, unmatched: 1, ..Matching::default() };
        let text = classes(&matching).replace(UNBROKEN, " ");
        assert!(text.contains("exact 999,999 (99.99 %)") && text.contains("unmatched 1 (0.01 %)"), "{text}");
        assert!(text.contains("lost 0 (0 %)"), "{text}");
    }
}
