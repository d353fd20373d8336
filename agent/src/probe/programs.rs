//! The programs in the object, the hook of each, and what each is for.

use std::fmt;

use super::btf::Btf;
use super::offsets::{
    Field, MSG_COUNT, ROLE, SKB_CB, SKB_DATA, SKB_DATA_LEN, SKB_HEAD, SKB_LEN, SKB_SK, SKB_TRANSPORT_HEADER,
    SOCK_DPORT, SOCK_FORWARD_ALLOC, SOCK_OWNED, SOCK_RMEM, SOCK_SHUTDOWN, SOCK_STATE, SOCK_TYPE,
    SOCK_V6_DADDR, SOCK_V6_RCV_SADDR, SOCK_WMEM, SOCKET_SK, TASK_PID, TASK_RAN, TASK_RUN_DELAY, TASK_STIME,
    TASK_TGID, TASK_UTIME, TCP_COPIED_SEQ, TCP_LAST_RECEIVED, TCP_LAST_SENT, TCP_RCV_NXT, TCP_WRITE_SEQ,
    UNIX_ADDRESS, UNIX_PEER, WALK_OUTPUT,
};

use Hook::{Entry, Iterator, Tracepoint};

/// What a program contributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The kernel puts a message on the proxy's socket.
    Arrival,
    /// The proxy's receive call returns it.
    Read,
    /// The proxy hands the forwarded message to the outgoing socket.
    Write,
    /// The same by `sendfile` or `splice`, on kernels where these have a way of their own.
    WritePages,
    /// Its first segment leaves for the device.
    Departure,
    /// Connections begin and end.
    Connections,
    /// The sockets that were there before.
    Sockets,
    /// Processes begin and end while the agent watches.
    Processes,
    /// Who runs on each CPU.
    Cpu,
    /// Whom softirqs serve.
    Softirqs,
}

/// One program.
#[derive(Clone, Copy, Debug)]
pub struct Program {
    /// Name of its function in the object.
    pub name: &'static str,
    /// What it attaches to.
    pub hook: Hook,
    /// What it contributes. Of several programs for one stamp the first that works is attached.
    pub purpose: Purpose,
    /// Kernel fields it reads.
    pub fields: &'static [&'static [Field]],
}

/// Where in the kernel a program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// At a tracepoint, its arguments typed by BTF (`tp_btf`).
    Tracepoint(&'static str),
    /// Where a function of the kernel begins (`fentry`).
    Entry(&'static str),
    /// At each of the kernel's objects of a kind, when user space asks for a walk (`iter`).
    Iterator(&'static str),
}

impl Hook {
    /// Its name in the kernel.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tracepoint(name) | Self::Entry(name) | Self::Iterator(name) => name,
        }
    }

    /// The kernel's word for the kind of program.
    pub const fn kind(self) -> &'static str {
        match self {
            Self::Tracepoint(_) => "tp_btf",
            Self::Entry(_) => "fentry",
            Self::Iterator(_) => "iter",
        }
    }

    /// True if this kernel has it.
    pub fn exists(self, btf: &Btf) -> bool {
        match self {
            Self::Tracepoint(name) => btf.has_tracepoint(name),
            Self::Entry(name) => btf.has_function(name),
            // As `Iter::load` asks for it.
            Self::Iterator(name) => btf.has_function(&format!("bpf_iter_{name}")),
        }
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.kind(), self.name())
    }
}

/// What is given up together when measuring costs too much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// Whom softirqs serve.
    Softirqs,
    /// CPU time of proxies.
    Cpu,
    /// Hops.
    Hops,
}

impl Group {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Softirqs, Self::Cpu, Self::Hops];

    /// What is not measured without it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Softirqs => "softirqs",
            Self::Cpu => "CPU time",
            Self::Hops => "hops",
        }
    }
}

impl Purpose {
    /// With what it is given up; nothing for what the agent cannot do without.
    pub const fn group(self) -> Option<Group> {
        match self {
            Self::Softirqs => Some(Group::Softirqs),
            Self::Cpu => Some(Group::Cpu),
            Self::Processes | Self::Sockets => None,
            _ => Some(Group::Hops),
        }
    }

    /// True if no hop can be measured without it.
    pub const fn needed_for_hops(self) -> bool {
        !matches!(self, Self::Processes | Self::WritePages | Self::Cpu | Self::Softirqs)
    }

    /// True if one program for it is enough.
    const fn one_is_enough(self) -> bool {
        !matches!(self, Self::Processes | Self::Softirqs)
    }
}

impl Program {
    /// True if `other`, attached, makes this one superfluous.
    pub(super) fn replaced_by(&self, other: &Self) -> bool {
        self.purpose == other.purpose && self.purpose.one_is_enough()
    }
}

const SKB: &[Field] = &[SKB_SK, SKB_LEN, SKB_DATA_LEN, SKB_HEAD, SKB_DATA, SKB_TRANSPORT_HEADER];

/// The write program on a tracepoint, which is not preempted.
pub(super) const WRITE: &str = "write";
/// The fallback write program, which runs after the send; it says so to the departure program.
pub(super) const WRITE_RETURN: &str = "write_return";

/// The program that walks the sockets of proxies.
pub(super) const WALK: &str = "walk";

/// All programs, in the order in which they are attached: a message is first noticed by `read`, so everything
/// that follows a read is in place before it.
pub const PROGRAMS: &[Program] = &[
    Program {
        name: "exec",
        hook: Tracepoint("sched_process_exec"),
        purpose: Purpose::Processes,
        fields: &[],
    },
    Program {
        name: "fork",
        hook: Tracepoint("sched_process_fork"),
        purpose: Purpose::Processes,
        fields: &[&[TASK_PID, TASK_TGID]],
    },
    Program {
        name: "exit",
        hook: Tracepoint("sched_process_exit"),
        purpose: Purpose::Processes,
        fields: &[],
    },
    Program {
        name: "switch",
        hook: Tracepoint("sched_switch"),
        purpose: Purpose::Cpu,
        fields: &[&[TASK_PID, TASK_TGID, TASK_UTIME, TASK_STIME, TASK_RAN, TASK_RUN_DELAY]],
    },
    Program {
        name: "softirq_begin",
        hook: Tracepoint("softirq_entry"),
        purpose: Purpose::Softirqs,
        fields: &[],
    },
    Program {
        name: "softirq_end",
        hook: Tracepoint("softirq_exit"),
        purpose: Purpose::Softirqs,
        fields: &[],
    },
    Program {
        name: "state",
        hook: Tracepoint("inet_sock_set_state"),
        purpose: Purpose::Connections,
        fields: &[&[SOCK_DPORT, SOCK_V6_DADDR, SOCK_V6_RCV_SADDR, TCP_COPIED_SEQ], ROLE],
    },
    Program {
        name: WALK,
        hook: Iterator("task_file"),
        purpose: Purpose::Sockets,
        fields: &[
            &[TASK_TGID, SOCKET_SK, SOCK_STATE, SOCK_TYPE, UNIX_ADDRESS, UNIX_PEER, WALK_OUTPUT],
            &[SOCK_RMEM, SOCK_WMEM, SOCK_FORWARD_ALLOC],
            &[TCP_COPIED_SEQ, TCP_RCV_NXT, TCP_LAST_SENT, TCP_LAST_RECEIVED],
            ROLE,
        ],
    },
    Program {
        name: "arrival",
        hook: Tracepoint("tcp_probe"),
        purpose: Purpose::Arrival,
        fields: &[&[SKB_CB, TCP_RCV_NXT]],
    },
    Program {
        name: "arrival_ready",
        hook: Tracepoint("sk_data_ready"),
        purpose: Purpose::Arrival,
        fields: &[],
    },
    Program {
        name: "departure",
        hook: Tracepoint("net_dev_start_xmit"),
        purpose: Purpose::Departure,
        fields: &[SKB],
    },
    Program {
        name: "departure_queue",
        hook: Tracepoint("net_dev_queue"),
        purpose: Purpose::Departure,
        fields: &[SKB],
    },
    Program {
        name: WRITE,
        hook: Tracepoint("tcp_sendmsg_locked"),
        purpose: Purpose::Write,
        fields: &[&[MSG_COUNT, TCP_COPIED_SEQ, TCP_WRITE_SEQ], ROLE],
    },
    Program {
        name: "write_entry",
        hook: Entry("tcp_sendmsg_locked"),
        purpose: Purpose::Write,
        fields: &[&[SOCK_STATE, TCP_COPIED_SEQ, TCP_WRITE_SEQ], ROLE],
    },
    Program {
        name: WRITE_RETURN,
        hook: Tracepoint("sock_send_length"),
        purpose: Purpose::Write,
        fields: &[&[TCP_WRITE_SEQ], ROLE],
    },
    Program {
        name: "write_pages",
        hook: Entry("do_tcp_sendpages"),
        purpose: Purpose::WritePages,
        fields: &[&[SOCK_STATE, TCP_COPIED_SEQ, TCP_WRITE_SEQ], ROLE],
    },
    Program {
        name: "read",
        hook: Tracepoint("tcp_rcv_space_adjust"),
        purpose: Purpose::Read,
        fields: &[&[SOCK_OWNED, SOCK_SHUTDOWN, TCP_COPIED_SEQ, TCP_RCV_NXT], ROLE],
    },
    Program {
        name: "read_return",
        hook: Tracepoint("sock_recv_length"),
        purpose: Purpose::Read,
        fields: &[&[SOCK_SHUTDOWN, TCP_COPIED_SEQ, TCP_RCV_NXT], ROLE],
    },
];
