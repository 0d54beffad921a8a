//! How much memory the allocator keeps that nobody uses: of glibc's, hundreds of MiB after many
//! threads used much at one time.
//!
//! With another C library these functions do nothing.

/// A block of this size, freed once, has glibc keep up to twice as much of what is freed later.
const KEPT_LEN: usize = 16 << 20;

#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "glibc has no other handle on its allocator")]
mod gnu {
    pub(super) fn share_arenas(most: i32) {
        // SAFETY: the call takes two numbers, and glibc locks what it changes.
        unsafe { libc::mallopt(libc::M_ARENA_MAX, most) };
    }

    pub(super) fn give_back() {
        // SAFETY: the call takes a number, and glibc locks what it changes.
        unsafe { libc::malloc_trim(0) };
    }
}

/// Has glibc keep memory that is freed, for what is needed next: it gives it back to the system from
/// 128 KiB on, and fetches it again page by page, which took a third of the CPU time of a first copy.
/// Both limits rise with the first large block that is freed (mallopt(3), `M_MMAP_THRESHOLD`).
pub fn keep_freed() {
    drop(std::hint::black_box(Vec::<u8>::with_capacity(KEPT_LEN)));
}

/// Has all threads of this process allocate from at most `most` arenas. Memory that is free in one
/// of them is of no use to a thread that has another, and by default there are eight for each core.
/// Those that exist already stay.
pub fn share_arenas(most: u8) {
    #[cfg(target_env = "gnu")]
    gnu::share_arenas(most.into());
    #[cfg(not(target_env = "gnu"))]
    let _ = most;
}

/// Gives free memory back to the system. It takes some milliseconds for each 100 MiB.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    gnu::give_back();
}
