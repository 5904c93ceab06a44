//! What to run, as the arguments say.

use std::path::PathBuf;
use std::time::Duration;

use super::contender::{Kind, node_cache_program};

/// How much is run, with whom, and where the report goes.
#[derive(Debug)]
pub struct Plan {
    pub seconds: u64,
    pub rate: u32,
    /// Forged responses per contender.
    pub forged: u64,
    pub kinds: Vec<Kind>,
    /// Scenarios; all where it is empty.
    pub only: Vec<String>,
    /// Hold nodens to its promises; else only to answering at all.
    pub judge: bool,
    pub json: Option<PathBuf>,
    pub markdown: Option<PathBuf>,
    /// Reports of earlier runs, to be put together; nothing is run.
    pub join: Vec<PathBuf>,
}

impl Plan {
    /// Everything, for 60 s each.
    fn whole() -> Self {
        Self {
            seconds: 60,
            rate: 2000,
            forged: 10_000_000,
            kinds: Kind::ALL.to_vec(),
            only: Vec::new(),
            judge: false,
            json: None,
            markdown: None,
            join: Vec::new(),
        }
    }

    /// Reads arguments; `scenarios` are those that there are.
    ///
    /// # Errors
    /// What is wrong with them, or what is missing.
    pub fn read(
        arguments: impl Iterator<Item = String>,
        scenarios: &[&str],
    ) -> Result<Self, String> {
        let (mut plan, mut arguments) = (Self::whole(), arguments);
        while let Some(flag) = arguments.next() {
            match flag.as_str() {
                "--bench" => continue, // cargo's own
                "--judge" => plan.judge = true,
                "--smoke" => plan.smoke(),
                _ => {
                    let value = arguments.next().ok_or(format!("{flag} takes a value"))?;
                    plan.take(&flag, &value)?;
                }
            }
        }
        if let Some(odd) = plan.only.iter().find(|only| !scenarios.contains(&only.as_str())) {
            return Err(format!("--only {odd}: not among {}", scenarios.join(", ")));
        }
        if plan.join.is_empty() && plan.kinds.contains(&Kind::NodeCache) {
            node_cache_program()
                .ok_or("NODE_CACHE names no program: benches/upstreams/run builds it")?;
        }
        Ok(plan)
    }

    /// The least that shows whether it works at all: nodens alone, for seconds.
    fn smoke(&mut self) {
        (self.seconds, self.forged) = (3, 200_000);
        self.kinds = vec![Kind::Nodens];
        let quick = ["loss", "herd", "cost", "conntrack", "ports", "spoofer"];
        self.only = quick.map(str::to_owned).to_vec();
    }

    /// Takes one flag with its value.
    fn take(&mut self, flag: &str, value: &str) -> Result<(), String> {
        let number = || value.parse::<u64>().map_err(|error| format!("{flag} {value}: {error}"));
        match flag {
            "--seconds" => self.seconds = number()?,
            "--forged" => self.forged = number()?,
            "--only" => self.only = value.split(',').map(str::to_owned).collect(),
            "--contender" => {
                let known = |name: &str| Kind::ALL.into_iter().find(|kind| kind.name() == name);
                let kinds: Option<_> = value.split(',').map(known).collect();
                self.kinds = kinds.ok_or(format!("--contender {value}: not known"))?;
            }
            "--json" => self.json = Some(value.into()),
            "--markdown" => self.markdown = Some(value.into()),
            "--join" => self.join = value.split(',').map(PathBuf::from).collect(),
            _ => return Err(format!("{flag}: not known")),
        }
        Ok(())
    }

    /// The length of a run.
    pub fn span(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }

    /// Tells whether a scenario is to be run.
    pub fn wants(&self, scenario: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == scenario)
    }
}
