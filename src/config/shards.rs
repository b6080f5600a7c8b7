//! Which shard runs on which CPU: from `"auto"`, a number, or a CPU list, and the CPUs this process may use.

use super::file::Shards;

/// Each shard has rings to every other, so their number is bounded.
const SHARDS_MAX: usize = 256;

/// The CPUs that this process may run on (sched_getaffinity), in ascending order; empty where the system will not say.
pub fn allowed_cpus() -> Vec<usize> {
    core_affinity::get_core_ids().unwrap_or_default().into_iter().map(|core| core.id).collect()
}

/// What `--shards` takes: `auto`, a number of shards, or a CPU list (one CPU alone is written `4-4`).
pub fn parse_flag(text: &str) -> Shards {
    match text.parse() {
        Ok(count) => Shards::Count(count),
        Err(_) if text == "auto" => Shards::Auto,
        Err(_) => Shards::Cpus(text.to_owned()),
    }
}

/// The CPU of each shard; `None` where it is not pinned. Never empty.
pub fn assign(shards: &Shards, allowed: &[usize]) -> Result<Vec<Option<usize>>, String> {
    let count = match shards {
        Shards::Auto => allowed.len().clamp(1, SHARDS_MAX),
        Shards::Count(count) => usize::try_from(*count).unwrap_or(usize::MAX),
        Shards::Cpus(list) => return cpu_list(list, allowed).map(|cpus| cpus.into_iter().map(Some).collect()),
    };
    if count == 0 || count > SHARDS_MAX {
        return Err(format!("{count} shards: expected 1 to {SHARDS_MAX}"));
    }
    // More shards than CPUs is for tests; the excess goes where the kernel puts it.
    Ok((0..count).map(|shard| allowed.get(shard).copied()).collect())
}

fn cpu_list(list: &str, allowed: &[usize]) -> Result<Vec<usize>, String> {
    let mut cpus = Vec::new();
    for part in list.split(',').map(str::trim) {
        let (first, last) = cpu_range(part).ok_or_else(|| {
            format!("bad shards {list:?}: expected \"auto\", a number, or a CPU list such as \"2-5,8\"")
        })?;
        for cpu in first..=last {
            if !allowed.contains(&cpu) {
                return Err(format!(
                    "CPU {cpu} of the list {list:?} may not be used by this process; allowed: {}",
                    print_cpus(allowed)
                ));
            }
            if cpus.contains(&cpu) {
                return Err(format!("CPU {cpu} stands twice in the list {list:?}"));
            }
            if cpus.len() == SHARDS_MAX {
                return Err(format!("the CPU list {list:?} has more than {SHARDS_MAX} CPUs"));
            }
            cpus.push(cpu);
        }
    }
    Ok(cpus)
}

fn cpu_range(part: &str) -> Option<(usize, usize)> {
    let (first, last) = part.split_once('-').unwrap_or((part, part));
    let (first, last) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    (first <= last).then_some((first, last))
}

/// Writes CPUs as a list with ranges, in the order given.
pub fn print_cpus(cpus: &[usize]) -> String {
    let mut parts: Vec<(usize, usize)> = Vec::new();
    for &cpu in cpus {
        match parts.last_mut() {
            Some((_, last)) if *last + 1 == cpu => *last = cpu,
            _ => parts.push((cpu, cpu)),
        }
    }
    let part =
        |(first, last): &(usize, usize)| if first == last { first.to_string() } else { format!("{first}-{last}") };
    parts.iter().map(part).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn assignments() {
        let allowed = [0, 1, 2, 5, 8];
        let all = |cpus: &[usize]| cpus.iter().copied().map(Some).collect::<Vec<_>>();
        for (text, expected) in [
            ("auto", all(&allowed)),
            ("1", all(&[0])),
            ("4", all(&[0, 1, 2, 5])),
            ("7", vec![Some(0), Some(1), Some(2), Some(5), Some(8), None, None]),
            ("1-2,8", all(&[1, 2, 8])),
            ("8, 0-1", all(&[8, 0, 1])),
            ("5-5", all(&[5])),
        ] {
            assert_eq!(assign(&parse_flag(text), &allowed), Ok(expected), "{text}");
        }
        assert_eq!(assign(&Shards::Cpus("5".to_owned()), &allowed), Ok(vec![Some(5)]));
        assert_eq!(assign(&Shards::Auto, &[]), Ok(vec![None]));
        assert_eq!(print_cpus(&[8, 0, 1, 2, 5]), "8,0-2,5");
    }

    #[test]
    fn refusals() {
        for (text, part) in [
            ("0", "0 shards: expected 1 to 256"),
            ("257", "257 shards: expected 1 to 256"),
            ("-1", "bad shards \"-1\""),
            ("many", "bad shards \"many\""),
            ("2-1", "bad shards \"2-1\""),
            ("1,,2", "bad shards \"1,,2\""),
            ("0-5", "CPU 3 of the list \"0-5\" may not be used by this process; allowed: 0-2,5,8"),
            ("0-18446744073709551615", "CPU 3 of the list"),
            ("1,1", "CPU 1 stands twice"),
        ] {
            let message = assign(&parse_flag(text), &[0, 1, 2, 5, 8]).unwrap_err();
            assert!(message.contains(part), "{text}: {message}");
        }
    }
}
