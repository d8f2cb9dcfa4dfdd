//! The lock and the condition variable of the suspension handshake, in one
//! place so that the model check can take its own: in this crate's unit tests
//! they are a scheduler's, which tries one interleaving after the other (see
//! `forwarder::model`), and work nowhere else.  Everything else that is built
//! on this crate has the real ones.

#[cfg(not(test))]
pub(crate) use parking_lot::{Condvar, Mutex, MutexGuard};

#[cfg(test)]
pub(crate) use checked::{Condvar, Mutex, MutexGuard};

/// The scheduler's primitives with the real ones' interface.
#[cfg(test)]
mod checked {
    use std::ops::{Deref, DerefMut};
    use std::sync::PoisonError;
    use std::time::Instant;

    use shuttle::sync;

    #[derive(Debug, Default)]
    pub(crate) struct Mutex<T>(sync::Mutex<T>);

    /// `None` only while [`Condvar::wait`] has it.
    pub(crate) struct MutexGuard<'a, T>(Option<sync::MutexGuard<'a, T>>);

    #[derive(Debug, Default)]
    pub(crate) struct Condvar(sync::Condvar);

    pub(crate) struct Waited(bool);

    impl<T> Mutex<T> {
        pub(crate) const fn new(value: T) -> Self {
            Self(sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            let guard = self.0.lock();
            MutexGuard(Some(guard.unwrap_or_else(PoisonError::into_inner)))
        }
    }

    impl<T> Deref for MutexGuard<'_, T> {
        type Target = T;

        fn deref(&self) -> &T {
            self.0.as_deref().unwrap_or_else(|| unreachable!())
        }
    }

    impl<T> DerefMut for MutexGuard<'_, T> {
        fn deref_mut(&mut self) -> &mut T {
            self.0.as_deref_mut().unwrap_or_else(|| unreachable!())
        }
    }

    impl Condvar {
        pub(crate) const fn new() -> Self {
            Self(sync::Condvar::new())
        }

        pub(crate) fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
            if let Some(held) = guard.0.take() {
                let held = self.0.wait(held);
                guard.0 = Some(held.unwrap_or_else(PoisonError::into_inner));
            }
        }

        /// Time stands still: a deadline has passed or never does, so that no
        /// timeout hides a wake-up that was lost.
        pub(crate) fn wait_until<T>(
            &self,
            guard: &mut MutexGuard<'_, T>,
            deadline: Instant,
        ) -> Waited {
            if deadline <= Instant::now() {
                return Waited(true);
            }
            self.wait(guard);
            Waited(false)
        }

        pub(crate) fn notify_all(&self) {
            self.0.notify_all();
        }
    }

    impl Waited {
        pub(crate) const fn timed_out(&self) -> bool {
            self.0
        }
    }
}
