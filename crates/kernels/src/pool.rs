//! The threads that kernels run on, the buffers they keep, and how they share an output.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::{Arc, PoisonError, RwLock};

use rayon::iter::{IndexedParallelIterator, IntoParallelIterator, ParallelIterator};
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::Error;

static POOL: RwLock<Option<Arc<ThreadPool>>> = RwLock::new(None);

/// Makes every later call use `threads` threads. Until then there are as many as the machine has processors.
pub fn set_threads(threads: usize) -> Result<(), Error> {
    let pool = build(threads.max(1))?;
    *POOL.write().unwrap_or_else(PoisonError::into_inner) = Some(pool);
    Ok(())
}

/// How many threads calls use.
pub fn threads() -> usize {
    pool().map_or(1, |pool| pool.current_num_threads())
}

fn build(threads: usize) -> Result<Arc<ThreadPool>, Error> {
    let pool = ThreadPoolBuilder::new().num_threads(threads).thread_name(|index| format!("kernels-{index}"));
    pool.build().map(Arc::new).map_err(|error| Error::Threads(error.to_string()))
}

/// None where the system refuses threads: then the caller's does all the work.
fn pool() -> Option<Arc<ThreadPool>> {
    if let Some(pool) = &*POOL.read().unwrap_or_else(PoisonError::into_inner) {
        return Some(Arc::clone(pool));
    }
    let mut slot = POOL.write().unwrap_or_else(PoisonError::into_inner);
    if slot.is_none() {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        *slot = build(processors).ok();
    }
    slot.clone()
}

/// Calls `task` with 0 .. `tasks`, each once, on all threads.
pub(crate) fn for_each(tasks: usize, task: impl Fn(usize) + Sync + Send) {
    match pool() {
        Some(pool) if tasks > 1 && pool.current_num_threads() > 1 => {
            pool.install(|| (0..tasks).into_par_iter().with_max_len(1).for_each(task));
        }
        _ => (0..tasks).for_each(task),
    }
}

/// A slice that tasks write disjoint parts of.
pub(crate) struct Shared<'a, T>(*mut T, usize, PhantomData<&'a mut [T]>);

// SAFETY: it only hands out parts that its users promise to be disjoint, of a slice that is theirs alone.
unsafe impl<T: Send> Send for Shared<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self(slice.as_mut_ptr(), slice.len(), PhantomData)
    }

    /// A part to write.
    ///
    /// # Safety
    /// No element is in two parts that live at the same time.
    #[allow(clippy::mut_from_ref)] // the point of the type
    pub(crate) unsafe fn part(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.1, "a part outside of its slice");
        // SAFETY: inside the slice (just checked), which lives for 'a; the caller promises that nobody else has it.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(range.start), range.len()) }
    }
}

/// A cache line, which vectors do not straddle.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// Larger buffers are given back at once.
const KEPT_LINES: usize = (32 << 20) / size_of::<Line>();

thread_local! {
    static BUFFERS: RefCell<Vec<Vec<Line>>> = const { RefCell::new(Vec::new()) };
}

/// Calls `body` with a buffer of `len` values, aligned to a cache line, whose content is arbitrary. Kept for the
/// thread's next call, since fresh memory costs more to touch than some kernels take.
pub(crate) fn with_buffer<R>(len: usize, body: impl FnOnce(&mut [f32]) -> R) -> R {
    let mut lines = BUFFERS.with_borrow_mut(Vec::pop).unwrap_or_default();
    let needed = len.div_ceil(16);
    if lines.len() < needed {
        lines.clear();
        lines.resize(needed, Line([0.0; 16]));
    }
    let result = body(&mut bytemuck::cast_slice_mut(&mut lines)[..len]);
    if lines.len() <= KEPT_LINES {
        BUFFERS.with_borrow_mut(|buffers| buffers.push(lines));
    }
    result
}
