//! The probes: one file per hook family, all maps in [`maps`], all kernel offsets in [`offsets`].
//!
//! No payload is read, no traffic changed, no loop is unbounded. Each program is O(1), and a panic would be an
//! endless loop that the verifier refuses: that it loads proves that it cannot panic.
//!
//! On the host this crate is an empty program, so that `cargo clippy --workspace` works without a BPF toolchain.
#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(core_intrinsics))]
#![cfg_attr(target_arch = "bpf", expect(internal_features, reason = "BPF has no core::sync::atomic"))]
#![cfg_attr(
    target_arch = "bpf",
    expect(unsafe_code, reason = "kernel memory is reached through raw pointers")
)]

#[cfg(target_arch = "bpf")]
mod arrival;
#[cfg(target_arch = "bpf")]
mod cost;
#[cfg(target_arch = "bpf")]
mod departure;
#[cfg(target_arch = "bpf")]
mod lane;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod offsets;
#[cfg(target_arch = "bpf")]
mod opening;
#[cfg(target_arch = "bpf")]
mod own;
#[cfg(target_arch = "bpf")]
mod process;
#[cfg(target_arch = "bpf")]
mod read;
#[cfg(target_arch = "bpf")]
mod several;
#[cfg(target_arch = "bpf")]
mod socket;
#[cfg(target_arch = "bpf")]
mod state;
#[cfg(target_arch = "bpf")]
mod walk;
#[cfg(target_arch = "bpf")]
mod word;
#[cfg(target_arch = "bpf")]
mod write;

#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
