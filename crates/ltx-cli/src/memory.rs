//! How much memory the machine has free, this program takes, and its control groups allow.

use std::fs::read_to_string;
use std::path::Path;

/// Bytes that this process has resident; where the system does not say, those that MLX holds.
pub fn resident() -> u64 {
    status("VmRSS:").unwrap_or_else(|| mlx::memory::active() as u64)
}

/// The most bytes that this process ever had resident; where the system does not say, the most that MLX held.
pub fn peak() -> Option<u64> {
    status("VmHWM:").or_else(|| Some(mlx::memory::peak() as u64).filter(|&bytes| bytes > 0))
}

/// One of the sizes that Linux tells of a process.
fn status(name: &str) -> Option<u64> {
    field(&read_to_string("/proc/self/status").ok()?, name).map(|kib| kib * 1024)
}

/// Bytes that this process may take in all: what it has and what is free. Where the system does not say, nothing.
pub fn most() -> Option<u64> {
    if cfg!(target_os = "macos") {
        // What Metal recommends as a working set, about; the system compresses and swaps the rest.
        return physical().map(|bytes| bytes / 4 * 3);
    }
    free(Path::new("/")).map(|bytes| bytes + resident())
}

/// The memory of a Mac.
fn physical() -> Option<u64> {
    let output = std::process::Command::new("/usr/sbin/sysctl").args(["-n", "hw.memsize"]).output().ok()?;
    String::from_utf8(output.stdout).ok()?.trim().parse().ok()
}

/// Bytes that are free on the machine whose files are below `root`, or fewer where a control group allows fewer.
fn free(root: &Path) -> Option<u64> {
    let available = field(&read_to_string(root.join("proc/meminfo")).ok()?, "MemAvailable:")? * 1024;
    let groups = read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let mut least = available;
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(group)) = (parts.next(), parts.next()) else { continue };
        let (mount, limit, usage) = match controllers {
            "" => ("sys/fs/cgroup", "memory.max", "memory.current"),
            names if names.split(',').any(|name| name == "memory") => {
                ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes")
            }
            _ => continue,
        };
        // Inside of a container the group's own folder may stand for the top; limits of outer groups hold too.
        let group = Path::new(group.trim_start_matches('/'));
        for folder in group.ancestors().map(|group| root.join(mount).join(group)) {
            least = least.min(room(&folder, limit, usage).unwrap_or(u64::MAX));
        }
    }
    Some(least)
}

/// What a control group leaves: its limit without its usage, of which the cache of files can be given back.
fn room(folder: &Path, limit: &str, usage: &str) -> Option<u64> {
    let number = |name: &str| read_to_string(folder.join(name)).ok()?.trim().parse::<u64>().ok();
    let stat = read_to_string(folder.join("memory.stat")).unwrap_or_default();
    let cached = ["total_inactive_file", "total_active_file"].map(|name| field(&stat, name));
    let cached = match cached {
        [None, None] => ["inactive_file", "active_file"].map(|name| field(&stat, name)),
        totals => totals,
    };
    let cached = cached.into_iter().flatten().sum::<u64>();
    Some(number(limit)?.saturating_sub(number(usage)?.saturating_sub(cached)))
}

/// The number after a name at the beginning of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().map(str::split_whitespace);
    lines.find_map(|mut words| (words.next() == Some(name)).then(|| words.next()?.parse().ok())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine with 10 GB free, and files that say more.
    fn machine(files: &[(&str, &str)]) -> Option<u64> {
        let root = tempfile::tempdir().unwrap();
        let meminfo = ("proc/meminfo", "MemTotal: 16000000 kB\nMemAvailable:   10000000 kB\n");
        for (path, text) in [meminfo].iter().chain(files) {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        free(root.path())
    }

    #[test]
    fn what_is_free_is_what_is_available() {
        assert_eq!(machine(&[]), Some(10_240_000_000));
        assert_eq!(free(Path::new("/nowhere")), None);
    }

    #[test]
    fn control_groups_of_the_second_kind_limit_it() {
        let limited = machine(&[
            ("proc/self/cgroup", "0::/a/b\n"),
            ("sys/fs/cgroup/a/memory.max", "4000000000\n"),
            ("sys/fs/cgroup/a/memory.current", "3000000000\n"),
            ("sys/fs/cgroup/a/memory.stat", "anon 1000\ninactive_file 1500000000\nactive_file 500000000\n"),
            ("sys/fs/cgroup/a/b/memory.max", "max\n"),
        ]);
        assert_eq!(limited, Some(3_000_000_000));
    }

    #[test]
    fn so_do_those_of_the_first() {
        let unlimited = ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
        let group = ("proc/self/cgroup", "9:name=systemd:/\n4:cpu,memory:/docker/1\n");
        let usage = ("sys/fs/cgroup/memory/memory.usage_in_bytes", "5000\n");
        assert_eq!(machine(&[unlimited, group, usage]), Some(10_240_000_000));
        let limit = ("sys/fs/cgroup/memory/memory.limit_in_bytes", "2000000000\n");
        let stat = ("sys/fs/cgroup/memory/memory.stat", "active_file 9\ntotal_active_file 3000\n");
        assert_eq!(machine(&[limit, group, usage, stat]), Some(1_999_998_000));
    }

    #[test]
    fn this_process_takes_some() {
        if cfg!(target_os = "linux") {
            // Other tests allocate meanwhile: two readings are never of the same moment.
            let held = std::hint::black_box(vec![1u8; 64 << 20]);
            let least = held.len() as u64;
            assert!(resident() > least && most().is_some_and(|bytes| bytes > least));
            assert!(peak().is_some_and(|bytes| bytes > least));
        }
    }
}
