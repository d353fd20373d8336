//! Structs of counters that only grow, taken as a whole.

use smp_agent_abi::layout::Cost;

/// Counters of one thing at one instant.
pub(crate) trait Counters: Copy {
    /// Of each counter and the same one of `other` a new one.
    fn each_with(self, other: Self, of_both: fn(u64, u64) -> u64) -> Self;

    /// What was added since `earlier`.
    fn since(self, earlier: Self) -> Self {
        self.each_with(earlier, u64::saturating_sub)
    }

    /// Both together.
    fn plus(self, other: Self) -> Self {
        self.each_with(other, u64::saturating_add)
    }
}

/// Makes [`Counters`] of a struct, all of whose fields are named here.
macro_rules! counters {
    ($type:ident { $($counter:ident),+ $(,)? }) => {
        impl $crate::counters::Counters for $type {
            fn each_with(self, other: Self, of_both: fn(u64, u64) -> u64) -> Self {
                Self { $($counter: of_both(self.$counter, other.$counter)),+ }
            }
        }
    };
}

pub(crate) use counters;

counters!(Cost {
    on_cpu_ns,
    user_ticks_ns,
    system_ticks_ns,
    voluntary,
    involuntary,
    softirq_borne_ns,
    softirq_caused_ns,
});

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Two {
        first: u64,
        second: u64,
    }

    counters!(Two { first, second });

    #[test]
    fn each_by_itself_and_never_beyond_its_ends() {
        let (earlier, now) = (Two { first: 5, second: u64::MAX }, Two { first: 7, second: 3 });
        assert_eq!(now.since(earlier), Two { first: 2, second: 0 });
        assert_eq!(now.plus(earlier), Two { first: 12, second: u64::MAX });
    }
}
