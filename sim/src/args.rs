//! The options of `weighlock-sim run` as they are typed.

use std::path::PathBuf;

use clap::Args;

use crate::options::Options;
use crate::scenario::Scenario;

/// What `run` takes. What is not given stays as the scenario has it.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// What is rehearsed
    #[arg(long, value_enum, default_value = "flash-crowd")]
    pub scenario: Scenario,
    /// Hosts that fetch
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    pub hosts: u32,
    /// Size of one manifest in GiB; fractions are fine
    #[arg(long, default_value_t = 1.0, value_parser = gib)]
    pub gib: f64,
    /// The only randomness
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Pieces of a manifest, about: sets the length of a piece
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub pieces: Option<u32>,
    /// Hosts that hold everything from the start
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub seeds: Option<u32>,
    /// Manifests at once, where the scenario is about that
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=16))]
    pub models: Option<u32>,
    /// Rate of each host in Gb/s, each way
    #[arg(long, value_parser = gbit)]
    pub gbit: Option<f64>,
    /// One way within a rack in microseconds; twice that elsewhere
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    pub latency_us: Option<u64>,
    /// Racks of equal size
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub racks: Option<u32>,
    /// Uplinks of a rack's hosts, summed, over the rack's own link
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub oversubscription: Option<u32>,
    /// Fetching hosts with a tenth of the rate, of a thousand
    #[arg(long, value_parser = clap::value_parser!(u32).range(0..=1_000))]
    pub slow_permille: Option<u32>,
    /// Fetching hosts that leave for good while others come, of a thousand
    #[arg(long, value_parser = clap::value_parser!(u32).range(0..=1_000))]
    pub churn_permille: Option<u32>,
    /// Uploads that a host serves at a time
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub uploads: Option<u32>,
    /// The same while a first holder releases pieces
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub uploads_release: Option<u32>,
    /// Fetches of a host in flight up to which offers of any piece are taken
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub downloads_aim: Option<u32>,
    /// Fetches of a host in flight
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub downloads: Option<u32>,
    /// Links that a host opens by itself; it accepts half as many more
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub neighbours: Option<u32>,
    /// News is gathered for at most this long, in milliseconds
    #[arg(long)]
    pub news_ms: Option<u64>,
    /// Most bytes in flight of a host, in MiB
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub in_flight_mib: Option<u64>,
    /// Hosts that serve wrong bytes
    #[arg(long)]
    pub liars: Option<u32>,
    /// Hosts that declare everything and hold nothing
    #[arg(long)]
    pub false_announcers: Option<u32>,
    /// Hosts that grant and never send
    #[arg(long)]
    pub mutes: Option<u32>,
    /// Hosts that declare what they have and never grant
    #[arg(long)]
    pub silents: Option<u32>,
    /// Crashes with a restart
    #[arg(long)]
    pub crashes: Option<u32>,
    /// Partitions that heal
    #[arg(long, value_parser = clap::value_parser!(u32).range(0..=10))]
    pub partitions: Option<u32>,
    /// Transfers cut at a random point, of a thousand
    #[arg(long, value_parser = clap::value_parser!(u32).range(0..=1_000))]
    pub cut_permille: Option<u32>,
    /// Where the completion curve goes [default: SCENARIO-HOSTS.svg in the current directory; "none": nowhere]
    #[arg(long)]
    pub svg: Option<PathBuf>,
    /// Writes the JSON to this file too
    #[arg(long)]
    pub out: Option<PathBuf>,
}

impl RunArgs {
    /// The run that is asked for.
    pub fn options(&self) -> Options {
        let bytes = (self.gib * f64::from(1 << 30)) as u64;
        let mut options = Options::new(self.hosts as usize, bytes, self.seed);
        set(&mut options.seeds, self.seeds.map(|count| count as usize));
        set(&mut options.models, self.models.map(|count| count as usize));
        set(&mut options.racks, self.racks);
        self.scenario.apply(&mut options);
        if let Some(pieces) = self.pieces {
            // A power of two that gives about so many: between 0.7 and 1.4 times.
            let wanted = (bytes / u64::from(pieces)).max(1);
            let above = wanted.next_power_of_two().max(16 << 10);
            let length = if above / 2 >= 16 << 10 && above * 10 > wanted * 14 { above / 2 } else { above };
            options.limits.piece_bytes_min = length;
            options.limits.piece_bytes_max = length;
        }
        if let Some(gbit) = self.gbit {
            options.up_bytes_per_s = (gbit * 125_000_000.0) as u64;
            options.down_bytes_per_s = options.up_bytes_per_s;
        }
        if let Some(latency) = self.latency_us {
            (options.latency_us, options.far_latency_us) = (latency, latency * 2);
        }
        set(&mut options.oversubscription_percent, self.oversubscription.map(|ratio| ratio * 100));
        set(&mut options.slow_permille, self.slow_permille);
        set(&mut options.churn_permille, self.churn_permille);
        let limits = &mut options.limits;
        set(&mut limits.uploads_max, self.uploads.map(|count| count as usize));
        set(&mut limits.uploads_release_max, self.uploads_release.map(|count| count as usize));
        set(&mut limits.downloads_aim, self.downloads_aim.map(|count| count as usize));
        set(&mut limits.downloads_max, self.downloads.map(|count| count as usize));
        set(&mut limits.news_ms_max, self.news_ms);
        set(&mut limits.in_flight_bytes_max, self.in_flight_mib.map(|mib| mib << 20));
        if let Some(count) = self.neighbours {
            limits.neighbours_target = count as usize;
            limits.neighbours_max = (count + count.div_ceil(2)) as usize;
        }
        set(&mut options.hostile.liars, self.liars);
        set(&mut options.hostile.false_announcers, self.false_announcers);
        set(&mut options.hostile.mutes, self.mutes);
        set(&mut options.hostile.silents, self.silents);
        set(&mut options.faults.crashes, self.crashes);
        set(&mut options.faults.partitions, self.partitions);
        set(&mut options.faults.cut_permille, self.cut_permille);
        options.pace();
        options
    }

    /// Where the picture goes, if anywhere.
    pub fn picture(&self) -> Option<PathBuf> {
        match &self.svg {
            Some(path) if path.as_os_str() == "none" => None,
            Some(path) => Some(path.clone()),
            None => Some(PathBuf::from(format!("{}-{}.svg", self.scenario, self.hosts))),
        }
    }
}

fn set<T>(field: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *field = value;
    }
}

fn gib(text: &str) -> Result<f64, String> {
    between(text, 0.000_1, 100_000.0)
}

fn gbit(text: &str) -> Result<f64, String> {
    between(text, 0.001, 10_000.0)
}

fn between(text: &str, min: f64, max: f64) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| "not a number".to_string())?;
    if (min..=max).contains(&number) { Ok(number) } else { Err(format!("between {min} and {max}")) }
}
