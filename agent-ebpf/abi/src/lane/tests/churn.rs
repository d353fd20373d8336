//! Measurements on the world, printed.
use super::world::*;
use super::*;

#[test]
fn explore() {
    use std::println;
    let churns = [
        ("none", Churn::default()),
        ("parts", Churn { parts: 300, ..Churn::default() }),
        ("local", Churn { local: 50, ..Churn::default() }),
        ("abort", Churn { abort: 20, ..Churn::default() }),
        ("close", Churn { close: 50, ..Churn::default() }),
        ("probe", Churn { probe: 2, ..Churn::default() }),
        ("late", Churn { late: 5, ..Churn::default() }),
    ];
    let kinds = [
        ("nginx", Timing::AtOnce, Writes::AsRead, Pool::Stack),
        ("haproxy", Timing::SameTurn, Writes::AsRead, Pool::Stack),
        ("rr", Timing::SameTurn, Writes::AsRead, Pool::Queue),
        ("envoy", Timing::NextTurn, Writes::Shuffled, Pool::Stack),
        ("tunnel", Timing::NextTurn, Writes::Shuffled, Pool::Own),
        ("random", Timing::NextTurn, Writes::Shuffled, Pool::Queue),
    ];
    for (name, timing, writes, pool) in kinds {
        for (what, churn) in churns {
            for clients in [1, 4, 16, 64] {
                let mut world = World::new(Plan { timing, writes, pool, clients, threads: 1, churn }, 7);
                world.run(2000);
                world.forget();
                world.run(2000);
                let during = world.shares();
                let n = world.truth_ns.len().max(1) as f64;
                let (truth, found) = (world.truth_ns.iter().sum::<u64>() as f64 / n, world.found_ns.iter().sum::<u64>() as f64 / n);
                world.settle();
                let left = world.kernel.counters.pending;
                world.plan.churn = Churn::default();
                world.wake();
                world.run(200);
                world.forget();
                world.run(1000);
                let after = world.shares();
                let n = world.truth_ns.len().max(1) as f64;
                let (truth2, found2) = (world.truth_ns.iter().sum::<u64>() as f64 / n, world.found_ns.iter().sum::<u64>() as f64 / n);
                println!("{name:8} {what:6} {clients:3}: during {:.3} {:.3} mean {truth:.0} {found:.0} | left {left} | after {:.3} {:.3} mean {truth2:.0} {found2:.0} | {:?}",
                    during[0], during[1], after[0], after[1], world.kernel.counters);
            }
        }
    }
}
