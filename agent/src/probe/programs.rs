//! The programs in the object, the hook of each, and what each is for.

use super::offsets::{
    Field, LOCAL_END, SKB_CB, SKB_DATA, SKB_DATA_LEN, SKB_HEAD, SKB_LEN, SKB_SK, SKB_TRANSPORT_HEADER,
    SOCK_OWNED, SOCK_SHUTDOWN, TASK_PID, TASK_TGID, TCP_COPIED_SEQ, TCP_RCV_NXT, TCP_WRITE_SEQ,
};

/// What a program contributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The kernel puts a message on the proxy's socket.
    Arrival,
    /// The proxy's receive call returns it.
    Read,
    /// The proxy hands the forwarded message to the outgoing socket.
    Write,
    /// Its first segment leaves for the device.
    Departure,
    /// Connections begin and end.
    Connections,
    /// Processes begin and end while the agent watches.
    Processes,
}

/// One program.
#[derive(Clone, Copy, Debug)]
pub struct Program {
    /// Name of its function in the object.
    pub name: &'static str,
    /// Tracepoint it attaches to.
    pub hook: &'static str,
    /// What it contributes. Of several programs for one stamp the first that works is attached.
    pub purpose: Purpose,
    /// Kernel fields it reads.
    pub fields: &'static [&'static [Field]],
}

impl Purpose {
    /// True if no hop can be measured without it.
    pub const fn needed_for_hops(self) -> bool {
        !matches!(self, Self::Processes)
    }

    /// True if one program for it is enough.
    const fn one_is_enough(self) -> bool {
        !matches!(self, Self::Processes)
    }
}

impl Program {
    /// True if `other`, attached, makes this one superfluous.
    pub(super) fn replaced_by(&self, other: &Self) -> bool {
        self.purpose == other.purpose && self.purpose.one_is_enough()
    }
}

const SKB: &[Field] = &[SKB_SK, SKB_LEN, SKB_DATA_LEN, SKB_HEAD, SKB_DATA, SKB_TRANSPORT_HEADER];

/// The fallback write program, which runs after the send; it says so to the departure program.
pub(super) const WRITE_RETURN: &str = "write_return";

/// All programs, in the order in which they are attached: a message is first noticed by `read`, so everything
/// that follows a read is in place before it.
pub const PROGRAMS: &[Program] = &[
    Program { name: "exec", hook: "sched_process_exec", purpose: Purpose::Processes, fields: &[] },
    Program {
        name: "fork",
        hook: "sched_process_fork",
        purpose: Purpose::Processes,
        fields: &[&[TASK_PID, TASK_TGID]],
    },
    Program { name: "exit", hook: "sched_process_exit", purpose: Purpose::Processes, fields: &[] },
    Program {
        name: "state",
        hook: "inet_sock_set_state",
        purpose: Purpose::Connections,
        fields: &[&[TCP_COPIED_SEQ], LOCAL_END],
    },
    Program {
        name: "arrival",
        hook: "tcp_probe",
        purpose: Purpose::Arrival,
        fields: &[&[SKB_CB, TCP_RCV_NXT]],
    },
    Program { name: "arrival_ready", hook: "sk_data_ready", purpose: Purpose::Arrival, fields: &[] },
    Program { name: "departure", hook: "net_dev_start_xmit", purpose: Purpose::Departure, fields: &[SKB] },
    Program { name: "departure_queue", hook: "net_dev_queue", purpose: Purpose::Departure, fields: &[SKB] },
    Program {
        name: "write",
        hook: "tcp_sendmsg_locked",
        purpose: Purpose::Write,
        fields: &[&[TCP_WRITE_SEQ], LOCAL_END],
    },
    Program {
        name: WRITE_RETURN,
        hook: "sock_send_length",
        purpose: Purpose::Write,
        fields: &[&[TCP_WRITE_SEQ], LOCAL_END],
    },
    Program {
        name: "read",
        hook: "tcp_rcv_space_adjust",
        purpose: Purpose::Read,
        fields: &[&[SOCK_OWNED, SOCK_SHUTDOWN, TCP_COPIED_SEQ, TCP_RCV_NXT], LOCAL_END],
    },
    Program {
        name: "read_return",
        hook: "sock_recv_length",
        purpose: Purpose::Read,
        fields: &[&[TCP_COPIED_SEQ, TCP_RCV_NXT], LOCAL_END],
    },
];
