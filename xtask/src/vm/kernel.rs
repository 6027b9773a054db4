// SPDX-License-Identifier: MIT OR Apache-2.0
//! Debian's kernels: found through the archive that this machine's apt uses, unpacked below `target/vm`, never installed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

use crate::shell;

/// The package that depends on a release's newest kernel for virtual machines: small, with BTF.
const PACKAGE: &str = "linux-image-cloud-amd64";
/// In the directory of a kernel: its release, as `uname -r` prints it. Written last.
const RELEASE: &str = "release";
/// Keys of all of Debian's releases that still get updates; without the file, apt's own keys serve.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// A kernel that the tests run on, by the version that Debian keeps for a whole release.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Kernel {
    /// Of Debian 12
    #[value(name = "6.1")]
    V6_1,
    /// Of Debian 13
    #[value(name = "6.12")]
    V6_12,
}

impl Kernel {
    /// As Linux counts.
    pub const fn version(self) -> &'static str {
        match self {
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
        }
    }

    /// The Debian release that has it.
    const fn suite(self) -> &'static str {
        match self {
            Self::V6_1 => "bookworm",
            Self::V6_12 => "trixie",
        }
    }

    /// Where all that concerns it is kept.
    pub fn directory(self) -> PathBuf {
        shell::root().join("target/vm").join(self.version())
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Linux {}", self.version())
    }
}

/// A kernel on this machine's disk.
pub struct Unpacked {
    /// What a boot loader loads.
    pub image: PathBuf,
    /// `lib/modules/<release>`.
    modules: PathBuf,
}

/// Unpacks a kernel, unless that was done before.
///
/// # Errors
/// When it can't be had.
pub fn fetch(kernel: Kernel) -> Result<Unpacked> {
    ensure!(cfg!(target_arch = "x86_64"), "Debian's kernels are fetched for 64-bit x86 only");
    let root = kernel.directory().join("root");
    if let Ok(release) = fs::read_to_string(kernel.directory().join(RELEASE)) {
        return Ok(Unpacked::new(&root, &release));
    }
    let apt = Apt::new(kernel)?;
    let package = apt.dependency(PACKAGE)?;
    eprintln!("fetching {package}");
    let archive = apt.download(&package)?;
    shell::run_quietly(Command::new("dpkg-deb").arg("--extract").arg(&archive).arg(&root))?;
    let release = package.strip_prefix("linux-image-").context("a kernel's package")?;
    fs::write(kernel.directory().join(RELEASE), release).context("can't write below target/vm")?;
    Ok(Unpacked::new(&root, release))
}

impl Unpacked {
    fn new(root: &Path, release: &str) -> Self {
        let places = ["lib/modules", "usr/lib/modules"].map(|place| root.join(place).join(release));
        let modules = places.iter().find(|place| place.is_dir()).unwrap_or(&places[0]).clone();
        Self { image: root.join("boot").join(format!("vmlinuz-{release}")), modules }
    }

    /// Files of modules and of all that they need, in the order in which they can be loaded. Names that are built in, or
    /// unknown to this kernel, are left out.
    ///
    /// # Errors
    /// When the list of dependencies can't be made.
    pub fn modules(&self, names: &[&str]) -> Result<Vec<PathBuf>> {
        let files = module_files(&self.modules.join("kernel"))?;
        let mut order = Vec::new();
        for name in names {
            self.visit(name, &files, &mut BTreeSet::new(), &mut order)?;
        }
        Ok(order)
    }

    fn visit(
        &self,
        name: &str,
        files: &BTreeMap<String, PathBuf>,
        on_the_way: &mut BTreeSet<String>,
        order: &mut Vec<PathBuf>,
    ) -> Result<()> {
        let Some(file) = files.get(name) else { return Ok(()) };
        if order.contains(file) || !on_the_way.insert(name.to_owned()) {
            return Ok(());
        }
        for needed in dependencies(&contents(file)?) {
            self.visit(&needed, files, on_the_way, order)?;
        }
        order.push(file.clone());
        Ok(())
    }
}

/// A module's bytes, as the kernel takes them.
///
/// # Errors
/// When it can't be read or decompressed.
pub fn contents(file: &Path) -> Result<Vec<u8>> {
    if file.extension().is_some_and(|extension| extension == "xz") {
        let output = Command::new("xz").args(["--decompress", "--stdout"]).arg(file).output();
        let output = output.context("can't start xz")?;
        ensure!(output.status.success(), "xz can't decompress {}", file.display());
        return Ok(output.stdout);
    }
    fs::read(file).with_context(|| format!("can't read {}", file.display()))
}

/// Modules below a directory, by name.
fn module_files(directory: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let mut files = BTreeMap::new();
    let entries = fs::read_dir(directory).with_context(|| format!("can't read {}", directory.display()))?;
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.is_dir() {
            files.append(&mut module_files(&path)?);
        } else if let Some((name, _)) = path.file_name().and_then(|name| name.to_str()?.split_once(".ko")) {
            files.insert(name.replace('-', "_"), path.clone());
        }
    }
    Ok(files)
}

/// What a module says that it needs: a string `depends=a,b` among those that it carries.
fn dependencies(module: &[u8]) -> Vec<String> {
    let strings = module.split(|&byte| byte == 0);
    let depends = strings.filter_map(|string| string.strip_prefix(b"depends="));
    let names = depends.filter_map(|names| std::str::from_utf8(names).ok()).flat_map(|names| names.split(','));
    names.filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect()
}

/// An apt with sources, lists and cache of its own, so that this machine's stay as they are.
struct Apt {
    directory: PathBuf,
}

impl Apt {
    /// Knows the packages of the kernel's Debian release.
    fn new(kernel: Kernel) -> Result<Self> {
        let directory = kernel.directory().join("apt");
        let apt = Self { directory };
        for place in ["lists/partial", "cache/archives/partial"] {
            let place = apt.directory.join(place);
            fs::create_dir_all(&place).with_context(|| format!("can't make {}", place.display()))?;
        }
        let sources = sources(kernel.suite())?;
        let file = apt.directory.join("sources.list");
        fs::write(&file, sources).with_context(|| format!("can't write {}", file.display()))?;
        shell::run_quietly(apt.command("apt-get").arg("update"))?;
        Ok(apt)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let places = [
            ("Dir::Etc::sourcelist", self.directory.join("sources.list")),
            ("Dir::Etc::sourceparts", "/dev/null".into()),
            ("Dir::State::lists", self.directory.join("lists")),
            ("Dir::State::status", "/dev/null".into()),
            ("Dir::Cache", self.directory.join("cache")),
        ];
        for (option, place) in places {
            command.arg("-o").arg(format!("{option}={}", place.display()));
        }
        // An old release is not signed anew: its lists may be past their date, but not altered.
        let others = ["Acquire::Check-Valid-Until=false", "Acquire::Languages=none", "APT::Sandbox::User=root"];
        for option in others {
            command.args(["-o", option]);
        }
        command.current_dir(&self.directory);
        command
    }

    /// The one package that a package depends on.
    fn dependency(&self, package: &str) -> Result<String> {
        let text = shell::output(self.command("apt-cache").args(["depends", package])).unwrap_or_default();
        let name = text.lines().find_map(|line| line.trim().strip_prefix("Depends: "));
        name.map(str::to_owned).with_context(|| format!("apt knows no {package} of this Debian release"))
    }

    fn download(&self, package: &str) -> Result<PathBuf> {
        shell::run_quietly(self.command("apt-get").args(["download", package]))?;
        let prefix = format!("{package}_");
        let files = fs::read_dir(&self.directory).into_iter().flatten().flatten().map(|entry| entry.path());
        let mut files =
            files.filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix)));
        files.next().with_context(|| format!("apt-get has downloaded no {package}"))
    }
}

/// Sources of a Debian release, where this machine's apt gets its own.
fn sources(suite: &str) -> Result<String> {
    let mut command = Command::new("apt-get");
    command.args(["indextargets", "--format", "$(REPO_URI) $(RELEASE) $(ORIGIN)", "Created-By: Packages"]);
    let targets = shell::output(&mut command).context("this machine has no apt that could fetch kernels")?;
    let options = Path::new(KEYRING).is_file().then(|| format!(" [signed-by={KEYRING}]"));
    let sources = translate(&targets, suite, &options.unwrap_or_default());
    if sources.is_empty() {
        bail!(
            "this machine's apt knows no archive of Debian's (after `apt-get update`), where kernels are fetched from"
        );
    }
    Ok(sources.into_iter().collect())
}

/// Lines of sources.list for a release, from those archives of Debian's that apt has lists of: the release itself and its
/// security updates.
fn translate(targets: &str, suite: &str, options: &str) -> BTreeSet<String> {
    let lines = targets.lines().filter_map(|line| {
        let [uri, release, "Debian"] = line.split(' ').collect::<Vec<_>>()[..] else { return None };
        let part = match release.split_once('-') {
            None => "",
            Some((_, "security")) => "-security",
            Some(_) => return None,
        };
        Some(format!("deb{options} {uri} {suite}{part} main\n"))
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_release_comes_from_where_this_one_does() {
        let targets = "http://mirror.example/debian/ bookworm Debian\n\
            http://mirror.example/debian/ bookworm-updates Debian\n\
            http://mirror.example/security/ bookworm-security Debian\n\
            http://vendor.example/apt/ stable A Vendor\n";
        let lines: Vec<_> = translate(targets, "bullseye", " [signed-by=/key]").into_iter().collect();
        assert_eq!(
            lines,
            [
                "deb [signed-by=/key] http://mirror.example/debian/ bullseye main\n",
                "deb [signed-by=/key] http://mirror.example/security/ bullseye-security main\n",
            ]
        );
    }

    #[test]
    fn a_module_names_what_it_needs() {
        let module = b"\x7fELF\0license=GPL\0depends=stp,llc-x\0name=bridge\0";
        assert_eq!(dependencies(module), ["stp", "llc_x"]);
        assert_eq!(dependencies(b"depends=\0"), [""; 0]);
    }
}
