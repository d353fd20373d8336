//! What the samples come to, for machines and for people.

use std::collections::BTreeSet;

use bed::load::Took;

use super::super::result::{Budget, Figure};
use super::{Options, Sample, Samples, Variant};

/// BPF time of a proxied request, both ways, all hooks on.
const MOST_US: f64 = 2.0;
/// ... as a multiple of programs that return at once.
const MOST_TIMES_EMPTY: f64 = 1.6;
/// Requests per second at saturation, as a share of those without an agent.
const LEAST_SHARE: f64 = 0.98;
/// What may come on top of the 99th percentile at a fixed rate: the larger of these.
const MOST_P99_US: f64 = 5.0;
const MOST_P99_SHARE: f64 = 0.01;
/// CPUs that the agent itself may keep busy, and its memory, MiB.
const MOST_CORES: f64 = 0.005;
const MOST_MIB: f64 = 32.0;

/// Of each variant the whole, then each program. Budgets are those of everything on.
pub(super) fn of(prefix: &str, samples: &Samples) -> Vec<Figure> {
    let whole = |sample: &Sample| sample.programs.values().map(|program| program.took_us).sum::<f64>();
    let empty: Vec<f64> = samples.get(&Variant::Empty).into_iter().flatten().map(whole).collect();
    let mut figures = Vec::new();
    for (variant, samples) in samples {
        let all = *variant == Variant::All;
        let values = |of: &dyn Fn(&Sample) -> f64| samples.iter().map(of).collect::<Vec<_>>();
        let mut add = |what: &str, unit: &'static str, values: &[f64], budget: Option<Budget>| {
            let name = format!("{prefix}/{}/{what}", variant.name());
            figures.push(Figure::new(name, unit, values, budget.filter(|_| all)));
        };
        let took = values(&whole);
        // Of the same round.
        let times: Vec<f64> = took.iter().zip(&empty).map(|(took, empty)| took / empty).collect();
        let runs = |sample: &Sample| sample.programs.values().map(|program| program.runs).sum::<f64>();
        add("bpf", "us/request", &took, Some(Budget::AtMost(MOST_US)));
        add("bpf/empty", "1", &times, Some(Budget::AtMost(MOST_TIMES_EMPTY)));
        add("runs", "1/request", &values(&runs), None);
        add("cpu_added", "us/request", &values(&|sample| sample.added_cpu_us), None);
        add("agent_cpu", "CPUs", &values(&|sample| sample.agent_cores), Some(Budget::AtMost(MOST_CORES)));
        add("agent_rss", "MiB", &values(&|sample| sample.agent_mib), Some(Budget::AtMost(MOST_MIB)));
        let pairs: Vec<[Took; 2]> = samples.iter().filter_map(|sample| sample.took).collect();
        if pairs.is_empty() {
            let share = values(&|sample| sample.share);
            add("requests", "share of those without an agent", &share, Some(Budget::AtLeast(LEAST_SHARE)));
        } else {
            for (place, name) in ["p50", "p99", "p99.9"].into_iter().enumerate() {
                let part = |took: &Took| [took.p50_us, took.p99_us, took.p999_us][place];
                let without: Vec<f64> = pairs.iter().map(|[without, _]| part(without)).collect();
                let added: Vec<f64> =
                    pairs.iter().map(|[without, with]| part(with) - part(without)).collect();
                let most = (MOST_P99_SHARE * Figure::new("", "us", &without, None).value).max(MOST_P99_US);
                add(&format!("{name}_without"), "us", &without, None);
                let budget = (name == "p99").then_some(Budget::AtMost(most));
                add(&format!("{name}_added"), "us", &added, budget);
            }
        }
        let programs: BTreeSet<_> = samples.iter().flat_map(|sample| sample.programs.keys()).collect();
        for program in programs {
            let took = |sample: &Sample| sample.programs.get(program).map_or(0.0, |program| program.took_us);
            add(&format!("bpf/program/{program}"), "us/request", &values(&took), None);
        }
    }
    figures
}

/// The figures of a subject for people: medians, smallest and largest.
pub(super) fn table(subject: &str, rate: u32, options: &Options, figures: &[Figure]) -> String {
    let Options { connections, rounds, seconds, .. } = options;
    let find = |pace: &str, variant: Variant, what: &str| {
        let name = format!("{subject}/{pace}/{}/{what}", variant.name());
        figures.iter().find(|figure| figure.name == name)
    };
    let shown = |pace: &str, variant: Variant, what: &str| {
        find(pace, variant, what).map_or_else(|| "-".to_owned(), Figure::shown)
    };
    let mut lines = vec![
        format!(
            "{subject}, {connections} connections, {rounds} rounds of {seconds} s: medians (smallest to largest)"
        ),
        String::new(),
        "| saturated | BPF, us a request | times empty | runs a request | requests/s of those without |"
            .to_owned(),
        "|---|---|---|---|---|".to_owned(),
    ];
    for variant in Variant::EACH {
        let [took, times, runs, requests] =
            ["bpf", "bpf/empty", "runs", "requests"].map(|what| shown("saturated", variant, what));
        lines.push(format!("| {} | {took} | {times} | {runs} | {requests} |", variant.name()));
    }
    lines.push(String::new());
    lines.push(format!(
        "| {rate} a second | BPF, us a request | CPU added, us a request | p50 added, us | p99 added, us | p99.9 added, us | agent, CPUs | MiB |"
    ));
    lines.push("|---|---|---|---|---|---|---|---|".to_owned());
    for variant in Variant::EACH {
        let cells = ["bpf", "cpu_added", "p50_added", "p99_added", "p99.9_added"]
            .map(|what| shown("fixed", variant, what))
            .join(" | ");
        let plain = |what: &str, digits: usize| {
            find("fixed", variant, what).map_or_else(
                || "-".to_owned(),
                |figure| {
                    let missed = if figure.within == Some(false) { " !" } else { "" };
                    format!("{:.digits$}{missed}", figure.value)
                },
            )
        };
        let (cores, mib) = (plain("agent_cpu", 4), plain("agent_rss", 1));
        lines.push(format!("| {} | {cells} | {cores} | {mib} |", variant.name()));
    }
    lines.push(String::new());
    lines.push("| program | empty, us a request | all |".to_owned());
    lines.push("|---|---|---|".to_owned());
    let prefix = format!("{subject}/saturated/{}/bpf/program/", Variant::All.name());
    // Without those that run for processes and connections, not for messages.
    let frequent = figures.iter().filter(|figure| figure.value >= 0.01);
    for program in frequent.filter_map(|figure| figure.name.strip_prefix(&prefix)) {
        let what = format!("bpf/program/{program}");
        let [empty, all] = [Variant::Empty, Variant::All].map(|variant| shown("saturated", variant, &what));
        lines.push(format!("| {program} | {empty} | {all} |"));
    }
    let of_this = |figure: &&Figure| figure.name.starts_with(&format!("{subject}/"));
    if figures.iter().filter(of_this).any(|figure| figure.within == Some(false)) {
        lines.push(String::new());
        lines.push(format!(
            "! misses its budget: at most {MOST_US} us, {MOST_TIMES_EMPTY} times empty, at the 99th percentile \
             {MOST_P99_US} us or {} %, {MOST_CORES} CPUs, {MOST_MIB} MiB; at least {LEAST_SHARE} of the requests",
            MOST_P99_SHARE * 100.0
        ));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::PerRequest;
    use super::*;

    fn sample(took_us: f64, took: Option<[f64; 2]>) -> Sample {
        Sample {
            programs: BTreeMap::from([("read".to_owned(), PerRequest { took_us, runs: 4.0 })]),
            share: 0.9,
            added_cpu_us: 1.5,
            took: took.map(|took| took.map(|p99_us| Took { p50_us: 1.0, p99_us, p999_us: 3.0 })),
            agent_cores: 0.001,
            agent_mib: 20.0,
        }
    }

    #[test]
    fn rounds_are_held_against_the_empty_programs_of_the_same() {
        let samples = |took| {
            Samples::from([
                (Variant::Empty, vec![sample(1.0, took), sample(2.0, took)]),
                (Variant::All, vec![sample(3.0, took), sample(6.0, took)]),
            ])
        };
        let mut figures = of("envoy/saturated", &samples(None));
        figures.extend(of("envoy/fixed", &samples(Some([100.0, 107.0]))));
        let of = |name: &str| figures.iter().find(|figure| figure.name == name).unwrap();
        let times = of("envoy/saturated/all/bpf/empty");
        assert_eq!((times.value, times.spread), (3.0, [3.0, 3.0]));
        assert_eq!(of("envoy/saturated/all/requests").within, Some(false));
        assert_eq!(of("envoy/saturated/empty/bpf").within, None);
        assert_eq!(of("envoy/saturated/all/agent_rss").within, Some(true));
        let added = of("envoy/fixed/all/p99_added");
        assert_eq!((added.value, added.within), (7.0, Some(false)));
        let table = table("envoy", 2000, &Options::default(), &figures);
        assert!(table.contains("| all | 4.50 (3.00 to 6.00) ! | 3.00 (3.00 to 3.00) ! | 4.00"), "{table}");
        assert!(table.contains("| hops | - |"), "{table}");
        assert!(table.contains("| 2000 a second |"), "{table}");
        assert!(table.contains("7.00 (7.00 to 7.00) ! | 0.00 (0.00 to 0.00) | 0.0010 | 20.0 |"), "{table}");
    }
}
