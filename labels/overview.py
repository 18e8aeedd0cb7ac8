"""The owner's page: progress, speed, agreement, screening, disagreements, links, export."""
import json
import statistics

from labels import agreement, forms

NUMBER = "<int(max=999999999999):number>"  # of a row, in an address
CUT_OFF = 0.75  # soft, of agreement with the owner on flags and on rankings (App. B.1)
SCORE_CUT_OFF = 6.0  # and of the mean score of demonstrations, 1 to 7
TIMES = " UNION ALL ".join(f"SELECT assignment, seconds FROM {table}" for table in (
    "rating", "ranking", "marks", "writing"))


def rankings_of(store):
    """{item: {labeler: columns}} of finished rankings of those whose work counts; columns as a
    tuple, in the order of the outputs' ids."""
    out = {}
    for r in store.all("SELECT s.item, s.labeler, ranking.ranks FROM ranking JOIN assignment s ON "
                       "s.id = ranking.assignment JOIN labeler ON labeler.id = s.labeler "
                       "WHERE s.state = 'done' AND NOT labeler.removed"):
        ranks = {int(k): v for k, v in json.loads(r["ranks"]).items()}
        out.setdefault(r["item"], {})[r["labeler"]] = tuple(ranks[k] for k in sorted(ranks))
    return out


def ratings_of(store):
    """{item: {output: {labeler: flags}}} of the screening items."""
    out = {}
    for r in store.all("SELECT s.item, s.labeler, rating.output, rating.flags FROM rating JOIN "
                       "assignment s ON s.id = rating.assignment JOIN item ON item.id = s.item "
                       "WHERE s.state = 'done' AND item.screening"):
        out.setdefault(r["item"], {}).setdefault(r["output"], {})[r["labeler"]] = json.loads(
            r["flags"])
    return out


def screening_items(store):
    return {row["id"] for row in store.all("SELECT id FROM item WHERE screening")}


def seconds_of(store):
    """{labeler: [seconds of each finished item]}."""
    out = {}
    for r in store.all(f"SELECT s.labeler, sum(x.seconds) AS seconds FROM ({TIMES}) x JOIN "
                       "assignment s ON s.id = x.assignment WHERE s.state = 'done' GROUP BY s.id"):
        out.setdefault(r["labeler"], []).append(r["seconds"])
    return out


def labelers(store, rankings):
    """A row of facts for each labeler, the owner first. rankings: as `rankings_of`."""
    ratings, speed, written = ratings_of(store), seconds_of(store), store.to_score()
    screening = screening_items(store)
    screened = {item: by for item, by in rankings.items() if item in screening}
    rows = store.all("SELECT * FROM labeler ORDER BY grp != 'owner', grp, name")
    owner = next((row["id"] for row in rows if row["grp"] == "owner"), None)
    out = []
    for row in rows:
        states = dict(store.all("SELECT state, count(*) FROM assignment WHERE labeler = ? "
                                "GROUP BY state", row["id"]))
        facts = {"labeler": row, "done": states.get("done", 0), "skipped": states.get("skipped", 0),
                 "written": store.written(row), "others": agreement.of(row["id"], rankings),
                 "seconds": statistics.median(speed[row["id"]]) if row["id"] in speed else None}
        if row["grp"] == "train" and owner is not None:
            facts["ranks"] = agreement.of(row["id"], screened, owner)
            facts["flags"] = agreement.on_flags(row["id"], owner, ratings)
            facts["scores"] = [w["score"] for w in written
                               if w["labeler"] == row["id"] and w["score"] is not None]
            facts["about"] = store.about(row)
            facts["passes"] = passes(facts["ranks"], facts["flags"], facts["scores"])
        out.append(facts)
    return out


def passes(ranks, flags, scores):
    """Whether all that was measured reaches its cut-off; None if nothing was measured."""
    known = [s["mean"] >= CUT_OFF for s in (ranks, flags) if s["mean"] is not None]
    known += [statistics.mean(scores) >= SCORE_CUT_OFF] if scores else []
    return all(known) if known else None


def progress(store):
    """[(what, finished labels, wanted labels)]; of the groups that exist."""
    groups = {row["grp"] for row in store.all("SELECT grp FROM labeler WHERE NOT removed")}
    out = []
    for title, group, where in (
            ("training labelers", "a.grp != 'heldout'", "1"),
            ("held-out labelers", "a.grp = 'heldout'", "split = 'valid' AND NOT screening")):
        wanted = store.one(f"SELECT coalesce(sum(wanted), 0) FROM item WHERE {where}")[0]
        done = store.one(
            "SELECT coalesce(sum(min(n, wanted)), 0) FROM (SELECT count(*) AS n, item.wanted AS "
            "wanted FROM assignment s JOIN labeler a ON a.id = s.labeler JOIN item ON item.id = "
            f"s.item WHERE s.state = 'done' AND NOT a.removed AND {group} GROUP BY item.id)")[0]
        if title.startswith("training") or "heldout" in groups:
            out.append((title, done, wanted))
    return out


def disagreements(store, rankings, most=50):
    """The items that labelers rank differently, the worst first: prompt, outputs with each
    labeler's rank."""
    names = {row["id"]: row["name"] for row in store.all("SELECT id, name FROM labeler")}
    out = []
    for pairs, item in agreement.disagreements(rankings)[:most]:
        outputs = store.all("SELECT * FROM output WHERE item = ? ORDER BY id", item)
        by = {names[who]: ranks for who, ranks in rankings[item].items()}
        out.append({"pairs": pairs, "labelers": list(by), "prompt": store.one(
            "SELECT prompt FROM item WHERE id = ?", item)["prompt"],
            "rows": [(o["text"], [ranks[i] for ranks in by.values()])
                     for i, o in enumerate(outputs)]})
    return out


class Owner:
    """The owner's pages. tell: see `web.make_app`."""

    def __init__(self, app, flask, store, tell):
        self.flask, self.store, self.tell = flask, store, tell
        for rule, view, methods in (
                ("/owner", self.owner, ["GET"]), ("/owner/add", self.add, ["POST"]),
                (f"/owner/remove/{NUMBER}", self.remove, ["POST"]),
                (f"/owner/link/{NUMBER}", self.link, ["POST"]),
                ("/owner/export", self.export, ["POST"]),
                ("/owner/disagreements", self.disagreements, ["GET"]),
                ("/owner/scores", self.scores, ["GET"]),
                (f"/owner/score/{NUMBER}", self.score, ["GET", "POST"])):
            app.add_url_rule(rule, view.__name__, self.only(view), methods=methods)

    def only(self, view):
        def for_the_owner(**values):
            if self.flask.g.me["grp"] != "owner":
                self.flask.abort(403)
            return view(**values)
        return for_the_owner

    def owner(self, links=(), files=None, problem=None):
        rankings = rankings_of(self.store)
        return self.flask.render_template(
            "owner.html", rows=labelers(self.store, rankings), progress=progress(self.store),
            links=links, files=files, problem=problem, told=self.tell.line(), cut_off=CUT_OFF,
            score_cut_off=SCORE_CUT_OFF, to_score=self.store.to_score(),
            all=agreement.among(rankings), disagreements=len(agreement.disagreements(rankings)))

    def add(self):
        """Add labelers, one name a line, and show their links: this once."""
        form = self.flask.request.form
        group = form.get("group", "")
        names = [name.strip() for name in form.get("names", "").splitlines() if name.strip()]
        known = {row["name"] for row in self.store.all("SELECT name FROM labeler")}
        if group not in ("train", "heldout") or not names:
            return self.owner(problem="Give a name, and choose a group.")
        if (double := known & set(names)) or len(set(names)) < len(names):
            return self.owner(problem="Each labeler needs a name of their own; there twice: "
                              + ", ".join(sorted(double or {n for n in names
                                                            if names.count(n) > 1})))
        if len(names) > 500 or max(map(len, names)) > 80:
            return self.owner(problem="At most 500 names at once, of at most 80 characters.")
        return self.owner(links=[(name, self.address(self.store.add_labeler(name, group)))
                                 for name in names])

    def address(self, token):
        return self.flask.url_for("enter", _external=True, _anchor=token)

    def link(self, number):
        """A new link for a labeler; the old one and its open pages end."""
        row = self.store.labeler(number)
        if row is None or row["grp"] == "owner":
            self.flask.abort(404)
        token = self.store.add_labeler(row["name"], row["grp"])
        return self.owner(links=[(row["name"], self.address(token))])

    def remove(self, number):
        self.store.set_removed(number, self.flask.request.form.get("removed") == "1")
        return self.flask.redirect(self.flask.url_for("owner"), 303)

    def export(self):
        return self.owner(files=self.tell.export())

    def disagreements(self):
        return self.flask.render_template("disagreements.html", items=disagreements(
            self.store, rankings_of(self.store)))

    def scores(self):
        """To the first demonstration without a score."""
        rows = self.store.to_score()
        row = next((row for row in rows if row["score"] is None), None)
        if row is None:
            return self.flask.redirect(self.flask.url_for("owner"), 303)
        return self.flask.redirect(self.flask.url_for("score", number=row["id"]), 303)

    def score(self, number):
        """A demonstration, not its writer: the owner's score from 1 to 7."""
        flask, rows, problem = self.flask, self.store.to_score(), None
        at = next((i for i, row in enumerate(rows) if row["id"] == number), None)
        if at is None:
            flask.abort(404)
        if flask.request.method == "POST":
            try:
                self.store.set_score(number, forms.likert(flask.request.form))
                return flask.redirect(flask.url_for("scores"), 303)
            except forms.Wrong as wrong:
                problem = str(wrong)
        return flask.render_template("score.html", rows=rows, at=at, row=rows[at],
                                     problem=problem), 200 if problem is None else 422
