//! A word that several CPUs change, by the kernel's atomic instructions.

use core::cell::UnsafeCell;
use core::intrinsics::{
    AtomicOrdering::{AcqRel, Relaxed},
    atomic_cxchg, atomic_xadd,
};
use core::mem::MaybeUninit;

use smp_agent_abi::word::Word;

/// A `u64` in a map.
#[repr(transparent)]
pub struct Atomic(UnsafeCell<u64>);

// SAFETY: every access is one atomic instruction.
unsafe impl Sync for Atomic {}

impl Atomic {
    /// The word at `field`, a field of a map value.
    #[inline(always)]
    pub fn at<'a>(field: *mut u64) -> &'a Self {
        // SAFETY: same size and alignment; map values outlive the program run.
        unsafe { &*field.cast() }
    }

    /// Raises it to `value`. Four attempts: each one that fails means that another CPU raised it.
    #[inline(always)]
    pub fn raise(&self, value: u64) {
        for _ in 0..4 {
            let seen = self.load();
            if seen >= value || self.swap_if(seen, value) {
                return;
            }
        }
    }
}

impl Word for Atomic {
    #[inline(always)]
    fn load(&self) -> u64 {
        // SAFETY: a map value; aligned 64-bit loads are single instructions.
        unsafe { self.0.get().read_volatile() }
    }

    #[inline(always)]
    fn store(&self, value: u64) {
        // SAFETY: a map value; aligned 64-bit stores are single instructions.
        unsafe { self.0.get().write_volatile(value) }
    }

    #[inline(always)]
    fn add(&self, value: u64) {
        // SAFETY: a map value.
        unsafe { atomic_xadd::<u64, u64, { Relaxed }>(self.0.get(), value) };
    }

    #[inline(always)]
    fn fetch_add(&self, value: u64) -> u64 {
        // A relaxed one becomes the instruction that returns nothing even where the result is used (LLVM 22).
        // SAFETY: a map value.
        unsafe { atomic_xadd::<u64, u64, { AcqRel }>(self.0.get(), value) }
    }

    #[inline(always)]
    fn swap_if(&self, old: u64, new: u64) -> bool {
        // SAFETY: a map value.
        unsafe { atomic_cxchg::<u64, { Relaxed }, { Relaxed }>(self.0.get(), old, new).1 }
    }
}

/// A value of zeros, written word by word: the linker's own way is a call that goes byte by byte, 0.1 us for 59 of them.
///
/// # Safety
/// Zeros are a valid `T`.
#[inline(always)]
pub unsafe fn cleared<T>(value: &mut MaybeUninit<T>) -> &mut T {
    const { assert!(size_of::<T>().is_multiple_of(8) && align_of::<T>() == 8) };
    for word in 0..size_of::<T>() / 8 {
        // SAFETY: within the value, aligned. Volatile, or it becomes that call.
        unsafe { value.as_mut_ptr().cast::<u64>().add(word).write_volatile(0) };
    }
    // SAFETY: as the caller promises.
    unsafe { value.assume_init_mut() }
}
