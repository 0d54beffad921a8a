//! How much memory the allocator keeps that nobody uses: of glibc's, hundreds of MiB after many
//! threads used much at one time.
//!
//! With another C library these functions do nothing.

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
