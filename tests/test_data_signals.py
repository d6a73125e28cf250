"""Signals: recordings, windows and beats from made-up files; the real ones where SSL_NB_DATA has them."""

import io
import wave
import zipfile

import numpy as np
import pytest
import torch
from real_data import needs

from ssl_nb import data
from ssl_nb.data import ecg, signals


def disjoint(one, other):
    return not set(one.tolist()) & set(other.tolist())


# ---- names


def test_loaders_are_listed_by_modality_without_an_import():
    assert data.names(modality="time series") == ["daily_min_temperatures", "ett", "monthly_sunspots"]
    assert data.names(modality="ecg") == ["ecg_beats", "ecg_wfdb"] and "fsdd" in data.names(modality="speech")
    assert all(isinstance(data.loaders.entry(name).target, str) for name in ("ett", "fsdd", "eeg_eye_state"))
    assert data.loaders.entry("ecg_beats").needs == "signals"


# ---- spoken digits


def wav(samples, rate=8000, channels=1):
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setparams((channels, 2, rate, 0, "NONE", ""))
        out.writeframes(samples.astype("<i2").tobytes())
    return file.getvalue()


def archive(speakers=("ann", "bob", "cyd"), takes=7, **more):
    "Each recording has a length and a first sample that tell which one it is."
    members = {f"{digit}_{who}_{take}.wav": wav(np.arange(3 + take) - 32768 + 100 * digit + 10 * s)
               for digit in (0, 7) for s, who in enumerate(speakers) for take in range(takes)}
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as out:
        for name, content in {**members, **more}.items():
            out.writestr(name, content)
    return file.getvalue()


def put_speech(given, content):
    return given(signals, "fsdd", {"recordings.zip": content})


def test_digits_are_split_by_speaker_or_by_take(given):
    put_speech(given, archive())
    d = data.load("fsdd", test_speakers=("bob",))
    assert (len(d.train), len(d.test), d.spec.group) == (28, 14, "speaker")
    assert disjoint(d.train["speaker"], d.test["speaker"])
    assert d.spec.values["speaker"] == ("ann", "bob", "cyd") and d.test["speaker"].unique().tolist() == [1]
    official = data.load("fsdd", split="take")
    assert official.test["take"].max() == 4 and official.train["take"].min() == 5 and "official" in official.spec.notes


def test_each_recording_keeps_its_samples_and_its_labels(given):
    put_speech(given, archive())
    d = data.load("fsdd", test_speakers=("cyd",))
    for split in (d.train, d.test):
        first = torch.stack([row[0] for row in split["wave"].rows()])
        assert torch.equal(first * 32768, (-32768 + 100 * split["labels"] + 10 * split["speaker"]).float())
        assert torch.equal(split["wave"].lengths, 3 + split["take"]) and split["wave"].values.dtype == torch.float32


@pytest.mark.parametrize(
    "content, word",
    [
        (archive()[:-30], "does not unpack"),
        (archive(**{"0_ann_9.wav": wav(np.arange(50))[:-8]}), "0_ann_9.wav has 46 samples and its header says 50"),
        (archive(**{"0_ann_9.wav": wav(np.arange(50))[:20]}), "0_ann_9.wav is no WAV file"),
        (archive(**{"0_ann_9.wav": wav(np.arange(50), 16000)}), r"Hz\) = \(1, 2, 16000\), not \(1, 2, 8000\)"),
        (archive(**{"0_ann_9.wav": wav(np.arange(50), channels=2)}), r"= \(2, 2, 8000\)"),
        (archive(**{"nine.wav": wav(np.arange(50))}), "not named digit_speaker_take"),
        (archive(speakers=()), "holds no WAV file"),
    ],
)
def test_a_broken_archive_is_refused(given, content, word):
    put_speech(given, content)
    with pytest.raises(ValueError, match=word) as error:
        data.load("fsdd")
    assert "recordings.zip" in str(error.value) and "Delete it and load again" in str(error.value)


def test_a_file_with_another_checksum_or_no_file_is_refused(given):
    folder = put_speech(given, archive())
    (folder / "recordings.zip").write_bytes(archive(takes=6))
    with pytest.raises(ValueError, match="its md5 is"):
        data.load("fsdd")
    (folder / "recordings.zip").unlink()
    with pytest.raises(FileNotFoundError, match="set SSL_NB_DATA"):
        data.load("fsdd")


def test_wrong_options_of_digits_are_named(given):
    put_speech(given, archive())
    with pytest.raises(ValueError, match="unknown speaker of fsdd 'bop'; did you mean 'bob'"):
        data.load("fsdd", test_speakers=("bop",))
    with pytest.raises(ValueError, match="leaves one side of the split empty"):
        data.load("fsdd", test_speakers=("ann", "bob", "cyd"))
    with pytest.raises(ValueError, match="unknown split of fsdd 'takes'; did you mean 'take'"):
        data.load("fsdd", split="takes")


@needs("fsdd")
def test_real_digits():
    d = data.load("fsdd")
    assert (len(d.train), len(d.test)) == (2000, 1000)
    assert [d.spec.values["speaker"][i] for i in d.test["speaker"].unique()] == ["theo", "yweweler"]
    assert torch.bincount(d.test["labels"]).tolist() == [100] * 10
    official = data.load("fsdd", split="take")
    assert (len(official.train), len(official.test)) == (2700, 300)
    one = d.train[(d.train["labels"] == 0) & (d.train["take"] == 0) & (d.train["speaker"] == 0)]
    assert one["wave"].lengths.tolist() == [2384]  # 0_george_0.wav has 4812 bytes, 44 of them header


# ---- EEG


def arff(eeg, state, names=signals._EEG):
    head = ["@RELATION EEG_DATA", *(f"@ATTRIBUTE {n} NUMERIC" for n in names), "@ATTRIBUTE eyeDetection {0,1}", "@DATA"]
    return "\n".join([*head, *(",".join(map(str, [*row, s])) for row, s in zip(eeg, state, strict=True))]).encode()


def put_eeg(given, content):
    given(signals, "eeg_eye_state", {"EEG Eye State.arff": content})


def made_up_eeg():
    state = np.repeat([0, 1, 0, 1, 0, 1], [30, 50, 7, 40, 43, 30])
    return np.arange(200)[:, None] + 1000.0 * np.arange(14), state


def test_windows_of_the_eeg_lie_in_one_run_and_on_one_side(given):
    eeg, state = made_up_eeg()
    eeg[33, 2] += 600
    put_eeg(given, arff(eeg, state))
    d = data.load("eeg_eye_state", length=10)
    for split in (d.train, d.test):
        samples = split["start"][:, None] + torch.arange(10)
        assert torch.equal(split["eeg"][:, 1], samples + 1000.0)
        assert torch.equal(torch.from_numpy(state)[samples], split["labels"][:, None].expand(-1, 10))
    assert d.train["start"].max() + 10 <= 150 <= d.test["start"].min()
    assert d.train["start"][d.train["artifact"]].tolist() == [30] and not d.test["artifact"].any()
    assert d.spec.group == "run" and d.spec.columns == signals._EEG


@pytest.mark.parametrize(
    "content, word",
    [
        (arff(*made_up_eeg())[:-4], "no ARFF file"),
        (arff(*made_up_eeg(), names=[f"X{i}" for i in range(14)]), "its attributes are X0"),
        (b"1,2,3\n", "ARFF|attributes"),
    ],
)
def test_a_broken_arff_file_is_refused(given, content, word):
    put_eeg(given, content)
    with pytest.raises(ValueError, match=word):
        data.load("eeg_eye_state")


def test_windows_of_the_eeg_that_do_not_fit_are_refused(given):
    put_eeg(given, arff(*made_up_eeg()))
    with pytest.raises(ValueError, match="no window of 60 samples fits"):
        data.load("eeg_eye_state", length=60)
    with pytest.raises(ValueError, match="one side of the split empty"):
        data.load("eeg_eye_state", length=45)
    with pytest.raises(ValueError, match="wants length as a number of samples, 1 or more; got 0"):
        data.load("eeg_eye_state", length=0)


@needs("eeg_eye_state")
def test_real_eeg():
    d = data.load("eeg_eye_state", length=1)
    both = {name: torch.cat([d.train[name], d.test[name]]) for name in d.train}
    assert len(both["labels"]) == 14980 and both["labels"].sum() == 6723 and len(both["run"].unique()) == 24
    assert both["eeg"][0, 0].item() == pytest.approx(4329.23) and both["labels"][-1] == 1
    d = data.load("eeg_eye_state")
    assert (len(d.train), len(d.test)) == (168, 54)
    assert d.train["artifact"].sum() == 2 and d.test["artifact"].sum() == 2


# ---- series


@pytest.mark.parametrize("length, horizon, stride", [(1, 1, 1), (5, 2, 1), (7, 3, 4), (20, 3, 50)])
def test_windows_are_slices_of_the_series(length, horizon, stride):
    series = torch.arange(46.0).reshape(23, 2)
    found = signals.windows(series, length, horizon, stride, first=100)
    for start, x, y in zip(found["start"] - 100, found["series"], found["future"], strict=True):
        assert torch.equal(x, series[start:start + length].T)
        assert torch.equal(y, series[start + length:start + length + horizon].T)
    assert found["start"].tolist() == list(range(100, 100 + 23 - length - horizon + 1, stride))


def test_windows_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"length \+ horizon = 24 steps do not fit into the 23"):
        signals.windows(torch.zeros(23, 1), 20, 4)
    with pytest.raises(ValueError, match="windows wants stride as a number of samples, 1 or more; got -1"):
        signals.windows(torch.zeros(23, 1), 2, 1, -1)


def put_ett(given, rows, header="date,HUFL,HULL,MUFL,MULL,LUFL,LULL,OT"):
    given(signals, "ETTh1", {"ETTh1.csv": "\n".join([header, *rows]).encode()}, "ett")


def hours(n, change=lambda i: 0):
    return [f"2016-07-01,{','.join(str(i + 0.5 * k + change(i)) for k in range(7))}" for i in range(n)]


def test_ett_is_split_by_time_with_statistics_of_the_first_year(given):
    put_ett(given, hours(14400 + 5))
    d = data.load("ett", length=48, horizon=12)
    month = 720
    for split in (d.train, d.test):
        assert torch.equal(split["series"][:, 0, 0], split["start"].float())
        assert torch.equal(split["future"][:, 6, -1], split["start"].float() + 59 + 3)
        assert torch.equal(split["block"], split["start"] // month)
    last = d.train["start"] + 60  # first hour after the window
    assert last.max() == 16 * month and d.test["start"].min() == 16 * month and (d.test["start"] + 60).max() == 20 * month
    early = d.train["block"] < 12
    assert last[early].max() == 12 * month and d.train["start"][~early].min() == 12 * month
    first = torch.arange(12.0 * month).double()
    torch.testing.assert_close(torch.tensor(d.spec.mean).double(), first.mean() + 0.5 * torch.arange(7).double())
    torch.testing.assert_close(torch.tensor(d.spec.std).double(), first.std(correction=0).expand(7))


def test_values_after_the_train_part_do_not_change_what_is_known_of_it(given):
    put_ett(given, hours(14400))
    before = data.load("ett")
    put_ett(given, hours(14400, lambda i: 1e4 * (i >= 12 * 720)))
    after = data.load("ett")
    assert before.spec == after.spec
    early = before.train["block"] < 12
    assert torch.equal(before.train["series"][early], after.train["series"][early])


@pytest.mark.parametrize(
    "rows, header, word",
    [
        (["2016-07-01,1,2,3,4,5,6,7", "2016-07-01,1,2,3"], None, "line 3 has a value that is missing"),
        (["2016-07-01,1,2,3,4,five,6,7"], None, "line 2 has a value that is missing or no number"),
        (["2016-07-01,1,2"], "date,a,b", "its columns are date, a, b"),
        ([], "", "no CSV file"),
    ],
)
def test_a_broken_series_is_refused(given, rows, header, word):
    put_ett(given, rows, **({} if header is None else {"header": header}))
    with pytest.raises(ValueError, match=word):
        data.load("ett")


def test_the_short_series_are_split_by_time(given):
    days = "\n".join(['"Date","Temp"', *(f'"1981-01-01",{i}' for i in range(3650))]).encode()
    given(signals, "daily_min_temperatures", {"daily-min-temperatures.csv": days}, "tabular")
    d = data.load("daily_min_temperatures")
    assert d.train["future"].max() == 8 * 365 - 1 and d.test["series"].min() == 8 * 365 and d.test["future"].max() == 3649
    assert disjoint(d.train["block"], d.test["block"])
    months = "\n".join(['"Month","Sunspots"', *(f'"1749-01",{i}' for i in range(2820))]).encode()
    given(signals, "monthly_sunspots", {"monthly-sunspots.csv": months}, "tabular")
    d = data.load("monthly_sunspots")
    assert d.train["future"].max() == 2243 and d.test["series"].min() == 2244 and disjoint(d.train["block"], d.test["block"])
    assert d.spec.shape == (1, 132)


def test_an_unknown_series_is_refused():
    with pytest.raises(ValueError, match="unknown station of ett 'ETTm1'; did you mean 'ETTh1'"):
        data.load("ett", station="ETTm1")


@needs("ett")
def test_real_ett():
    d = data.load("ett")
    assert (len(d.train), len(d.test)) == (8640 - 119 + 2880 - 119, 2880 - 119)
    assert d.train["series"][0, -1, 0].item() == pytest.approx(30.531) and d.spec.columns[-1] == "OT"
    # the scaler of the paper's code, on the first 12 months
    assert d.spec.mean[-1] == pytest.approx(17.1283, abs=1e-3) and d.spec.std[-1] == pytest.approx(9.1765, abs=1e-3)
    assert data.load("ett", station="ETTh2").spec.name == "ETTh2"


@needs("tabular")
def test_real_short_series():
    d = data.load("daily_min_temperatures", length=1, horizon=1)
    assert (len(d.train), len(d.test)) == (2919, 729) and d.train["series"][0].item() == pytest.approx(20.7)
    d = data.load("monthly_sunspots", length=1, horizon=1)
    assert len(d.train) + len(d.test) == 2820 - 2 and d.test["series"].max().item() == pytest.approx(253.8)


# ---- heartbeats


def beating(seconds, rate, every=0.8, first=0.5):
    "A signal with a spike of 20 ms at each beat, on a slow wave; and the samples of the spikes."
    time = torch.arange(int(seconds * rate)) / rate
    at = torch.arange(first, seconds, every)
    spikes = torch.exp(-0.5 * ((time[:, None] - at) / 0.015) ** 2).sum(1)
    return spikes + 0.5 * torch.sin(2 * torch.pi * 0.3 * time), (at * rate).round().long()


@pytest.mark.parametrize("rate", [125, 250, 360, 1000])
@pytest.mark.parametrize("every", [0.4, 0.8, 1.3])
def test_beats_are_found_at_their_spikes(rate, every):
    signal, at = beating(30, rate, every)
    found = ecg.find_beats(signal, rate)
    assert len(found) == len(at) and (found - at).abs().max() <= max(1, 0.02 * rate)
    assert torch.equal(ecg.find_beats(-signal, rate), found)


def test_beats_are_not_looked_for_in_too_short_a_signal():
    with pytest.raises(ValueError, match="4 seconds or more at more than 30 Hz; got 999 samples at 360 Hz"):
        ecg.find_beats(torch.zeros(999), 360)
    with pytest.raises(ValueError, match="at 30 Hz"):
        ecg.find_beats(torch.zeros(999), 30)


def write_record(folder, name, rate=360, units=("mV", "mV", "mmHg"), seconds=60.0, symbols=None):
    "Files of a record in WFDB's format; every lead has its beats at the same samples."
    wfdb = pytest.importorskip("wfdb")
    signal, at = beating(seconds, rate)
    leads = ("MLII", "V5", "ABP")[:len(units)]
    values = torch.stack([signal * (i + 1) for i in range(len(units))], 1).double().numpy()
    wfdb.wrsamp(name, fs=rate, units=list(units), sig_name=list(leads), p_signal=values,
                fmt=["16"] * len(units), write_dir=str(folder))
    if symbols is not None:
        wfdb.wrann(name, "atr", at.numpy(), symbols(len(at)), fs=rate, write_dir=str(folder))
    return signal, at


def put_record(given, tmp_path, key="100", folder="ecg_wfdb", **how):
    made = tmp_path / "made"
    made.mkdir(exist_ok=True)
    signal, at = write_record(made, key, **how)
    contents = {p.name: p.read_bytes() for p in sorted(made.glob(f"{key}.*"))}
    ordered = dict(sorted(contents.items(), key=lambda item: not item[0].endswith(".hea")))
    given(ecg, key, ordered, folder)
    return signal, at


def test_annotated_beats_become_classes_and_the_split_is_by_time(given, tmp_path):
    symbols = lambda n: ["+", "V", "A", *["N"] * (n - 5), "~", "Q"]  # noqa: E731
    signal, at = put_record(given, tmp_path, symbols=symbols)
    d = data.load("ecg_wfdb", length=200)
    assert d.spec.columns == ("MLII", "V5") and d.spec.shape == (2, 200) and d.spec.group == "minute"  # mmHg is no ECG
    assert [d.spec.classes[i] for i in d.train["labels"][:3]] == ["V", "S", "N"] and d.spec.classes[d.test["labels"][-1]] == "Q"
    border = 0.8 * 60
    assert (d.train["time"] + 100 / 360).max() <= border <= (d.test["time"] - 100 / 360).min()
    known = (at / 360).tolist()
    times = torch.cat([d.train["time"], d.test["time"]]).tolist()
    assert all(min(abs(t - k) for k in known) < 1e-4 for t in times)
    assert not any(abs(t - known[0]) < 1e-3 or abs(t - known[-2]) < 1e-3 for t in times)  # '+' and '~' are no beats
    window = d.train["ecg"][1]
    middle = round(d.train["time"][1].item() * 360)
    torch.testing.assert_close(window[0], signal[middle - 100:middle + 100].float(), atol=1e-3, rtol=0)
    torch.testing.assert_close(window[1], 2 * window[0], atol=1e-3, rtol=0)


def test_beats_without_annotations_have_unknown_labels(given, tmp_path):
    _, at = put_record(given, tmp_path, "a103l", rate=250)
    d = data.load("ecg_wfdb", record="a103l", length=100)
    assert set(torch.cat([d.train["labels"], d.test["labels"]]).tolist()) == {-1} and "unknown" in d.spec.notes
    assert len(d.train) + len(d.test) >= len(at) - 3


def test_recordings_are_joined_at_one_rate_and_split_whole(given, tmp_path, monkeypatch):
    monkeypatch.setattr(ecg, "_LEAD_II", {"100": "MLII", "208": "MLII", "a103l": "MLII", "s0010_re": "MLII"})
    _, at = put_record(given, tmp_path, symbols=lambda n: ["N"] * n, units=("mV",))
    put_record(given, tmp_path, "a103l", rate=250, units=("mV",))
    put_record(given, tmp_path, "s0010_re", rate=1000, units=("mV",))
    content = io.BytesIO()
    np.savez(content, ecg=(beating(60, 360)[0] * 200 + 1024).round().numpy().astype(np.uint16))
    given(ecg, "208", {"ecg.dat": content.getvalue()}, "ecg_scipy")
    d = data.load("ecg_beats", test_recordings=("208", "a103l"))
    assert disjoint(d.train["recording"], d.test["recording"]) and d.spec.group == "recording"
    names = d.spec.values["recording"]
    assert {names[i] for i in d.test["recording"].tolist()} == {"208", "a103l"}
    labeled = d.train["labels"] >= 0
    assert {names[i] for i in d.train["recording"][labeled].tolist()} == {"100"} and (d.test["labels"] == -1).all()
    # one made-up heart beats in all of them: brought to one rate, all beats are alike
    middle = d.train["ecg"].median(0).values
    wave = torch.cat([d.train["ecg"], d.test["ecg"]])
    wave, middle = wave - wave.mean(-1, keepdim=True), middle - middle.mean(-1, keepdim=True)
    assert (torch.nn.functional.cosine_similarity(wave, middle[None], dim=-1) > 0.7).all()


def test_a_broken_record_is_refused(given, tmp_path):
    put_record(given, tmp_path, symbols=lambda n: ["N"] * n)
    folder = tmp_path / "given" / "ecg_wfdb"
    contents = {p.name: p.read_bytes() for p in sorted(folder.glob("100.*"), key=lambda p: p.suffix != ".hea")}
    given(ecg, "100", {**contents, "100.dat": contents["100.dat"][:1001]}, "ecg_wfdb")
    with pytest.raises(ValueError, match="100.hea .*WFDB cannot read the record"):
        data.load("ecg_wfdb")
    (folder / "100.dat").write_bytes(contents["100.dat"][:1000])
    with pytest.raises(ValueError, match="100.dat .* md5"):
        data.load("ecg_wfdb")


def test_wrong_options_of_beats_are_named():
    with pytest.raises(ValueError, match="unknown record of ecg_wfdb '101'; did you mean '100'"):
        data.load("ecg_wfdb", record="101")
    with pytest.raises(ValueError, match="unknown recording of ecg_beats 'a103'; did you mean 'a103l'"):
        data.load("ecg_beats", test_recordings=("a103",))
    with pytest.raises(ValueError, match="leaves one side of the split empty"):
        data.load("ecg_beats", test_recordings=())
    with pytest.raises(ValueError, match="length of 2 samples or more, got 1"):
        data.load("ecg_beats", length=1)


@needs("ecg_wfdb")
def test_real_beats_of_one_recording():
    d = data.load("ecg_wfdb")
    assert (len(d.train), len(d.test)) == (1813, 457) and d.spec.columns == ("MLII", "V5")
    assert torch.bincount(torch.cat([d.train["labels"], d.test["labels"]])).tolist() == [2236, 33, 1]
    # record 100 has 2,239 beats N, 33 A and one V; three windows do not fit into the recording or cross the border
    for record, leads in (("a103l", 2), ("s0010_re", 15), ("03700181", 1)):
        assert data.load("ecg_wfdb", record=record, length=100).spec.shape == (leads, 100)


@needs("ecg_wfdb")
def test_beats_are_found_where_they_are_annotated():
    signal, rate, _, (at, _) = ecg._read("100")
    apart = (ecg.find_beats(signal[:, 0], rate)[:, None] - at).abs()
    assert (apart.amin(0) > 18).sum() <= 5 and (apart.amin(1) > 18).sum() <= 5


@needs("ecg_scipy")
def test_real_beats_of_four_recordings():
    d = data.load("ecg_beats")
    assert d.spec.shape == (1, 128) and d.test["recording"].unique().tolist() == [1]
    counts = torch.bincount(d.train["recording"]).tolist()
    assert counts[0] == 2271 and abs(counts[2] - 699) <= 5 and abs(counts[3] - 52) <= 2 and abs(len(d.test) - 493) <= 10
    assert ((d.train["labels"] >= 0) == (d.train["recording"] == 0)).all()
