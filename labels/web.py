"""The labelling page as a Flask app: who may see what, and each page.

Every answer is a form of its own, which works without scripts. static/page.js adds keys, dragging,
undo, the time that a page was looked at, and sending again when the connection is lost.
"""
import hashlib
import hmac
import ipaddress
import json
import secrets
import threading
import time
from pathlib import Path

from settings import extra

from labels import forms, overview
from labels.showing import shown, turns

POLICY = "; ".join(["default-src 'none'", *(f"{kind}-src 'self'" for kind in (
    "script", "style", "img", "connect")), "form-action 'self'", "base-uri 'none'",
    "frame-ancestors 'none'"])
HEADERS = {
    "Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin", "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin", "X-Frame-Options": "DENY",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()"}
MESSAGES = {
    400: "The page could not read what your browser sent. Go back and try again.",
    403: "This page is not for you. Open the link that you were given.",
    404: "There is nothing at this address.", 405: "There is nothing at this address.",
    413: "That is too much text for one answer.",
    429: "Too many wrong codes. Wait a minute, then try again.",
    500: "Something went wrong here. Your earlier answers are safe. Try again."}
NUMBER = overview.NUMBER
LARGEST = 2 ** 20  # bytes of a request
WRONG_CODES, WINDOW = 10, 60.0  # wrong codes from one address, in so many seconds


class Limit:
    """At most so many wrong codes in a window: from one address, and a hundred times that from
    all."""

    def __init__(self, clock=time.monotonic):
        self.clock, self.lock, self.wrong = clock, threading.Lock(), []

    def reached(self, address):
        with self.lock:
            self.wrong = [w for w in self.wrong if self.clock() - w[0] < WINDOW]
            own = sum(who == address for _, who in self.wrong)
            return own >= WRONG_CODES or len(self.wrong) >= 100 * WRONG_CODES

    def add(self, address):
        with self.lock:
            self.wrong.append((self.clock(), address))


def is_local(host):
    """Whether a host name, as in a request, means this machine."""
    name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
    try:
        return name == "localhost" or ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False


def cookie(store):
    """The name of the session's cookie. All ports of a machine share their cookies, so that each
    database has a name of its own."""
    return "labels-" + hashlib.sha256(store.secret.encode()).hexdigest()[:8]


def make_app(store, tell, local=True, clock=time.monotonic):
    """The app. tell: what the owner's page asks: line(), a line about sampling, and export(), which
    writes the records (page.py: Filling). local: answer only to names of this machine."""
    flask = extra("flask", "python -m labels.page")
    app = flask.Flask("labels", template_folder="templates", static_folder="static",
                      root_path=str(Path(__file__).parent))
    app.config.update(
        SECRET_KEY=store.secret, MAX_CONTENT_LENGTH=LARGEST, MAX_FORM_MEMORY_SIZE=LARGEST,
        MAX_FORM_PARTS=500, SESSION_COOKIE_NAME=cookie(store), SESSION_COOKIE_HTTPONLY=True,
        SESSION_COOKIE_SAMESITE="Strict", SEND_FILE_MAX_AGE_DEFAULT=None)
    app.jinja_env.filters.update(shown=shown, turns=turns)
    app.jinja_env.trim_blocks = app.jinja_env.lstrip_blocks = True
    guard(app, flask, store, local)
    Entering(app, flask, store, Limit(clock))
    Labelling(app, flask, store, clock)
    overview.Owner(app, flask, store, tell)
    return app


# ------------------------------------------------------------------------------------- who may

def guard(app, flask, store, local):
    """What holds for every request: its host, its session, its CSRF token, its headers."""

    @app.before_request
    def before():
        if local and not is_local(flask.request.host):
            flask.abort(403)  # a name of another site that leads here (DNS rebinding)
        number, session = flask.session.get("labeler"), flask.session.get("session")
        me = store.labeler(number) if number else None
        flask.g.me = me if me and me["session"] == session else None
        if flask.request.method == "POST":
            check_origin(flask)
            if flask.request.endpoint != "enter":
                given = flask.request.form.get("csrf", "")
                if not hmac.compare_digest(given.encode(), csrf(flask).encode()):
                    flask.abort(403)
        if flask.request.endpoint not in ("enter", "static", None) and not flask.g.me:
            return flask.redirect(flask.url_for("enter"), 303)

    @app.after_request
    def after(response):
        response.headers.update(HEADERS)
        response.headers["Cache-Control"] = (
            "no-cache" if flask.request.endpoint == "static" else "no-store")
        return response

    @app.context_processor
    def context():
        return {"me": flask.g.get("me"), "csrf": csrf(flask), "FLAGS": forms.FLAGS,
                "MARKS": forms.MARKS, "LONGEST": forms.LONGEST}

    def failed(error):
        code = getattr(error, "code", 500) or 500
        text = MESSAGES.get(code, MESSAGES[400 if code < 500 else 500])
        if code >= 500:
            app.logger.error("%s %s failed", flask.request.method, flask.request.endpoint,
                             exc_info=error)
        return flask.render_template("message.html", title="Sorry", text=text), code

    app.register_error_handler(Exception, failed)


def csrf(flask):
    """The token that the forms of this session carry."""
    if "csrf" not in flask.session:
        flask.session["csrf"] = secrets.token_urlsafe(24)
    return flask.session["csrf"]


def check_origin(flask):
    """Refuse a form that another site's page sends, where the browser tells."""
    origin, site = flask.request.headers.get("Origin"), flask.request.headers.get("Sec-Fetch-Site")
    if site not in (None, "same-origin", "none"):
        flask.abort(403)
    if origin is not None and origin != flask.request.host_url.rstrip("/"):
        flask.abort(403)


class Entering:
    """The pages for people with a code: enter, leave, and the instruction."""

    def __init__(self, app, flask, store, limit):
        self.flask, self.store, self.limit = flask, store, limit
        app.add_url_rule("/enter", "enter", self.enter, methods=["GET", "POST"])
        app.add_url_rule("/leave", "leave", self.leave, methods=["POST"])
        app.add_url_rule("/guide", "guide", self.guide)

    def enter(self):
        """The link is /enter#CODE: what follows # stays in the browser, which sends it as a form,
        so that no code stands in the address of a request."""
        flask = self.flask
        if flask.request.method == "GET":
            return flask.render_template("enter.html", problem=None)
        who = flask.request.remote_addr
        if self.limit.reached(who):
            flask.abort(429)
        labeler = self.store.labeler_of(flask.request.form.get("code", "")[:200].strip())
        if labeler is None:
            self.limit.add(who)
            return flask.render_template(
                "enter.html", problem="This code is not known. Copy the whole link again."), 403
        flask.session.clear()
        flask.session.update(labeler=labeler["id"], session=labeler["session"])
        return flask.redirect(flask.url_for("owner" if labeler["grp"] == "owner" and
                                            self.store.is_class() else "work"), 303)

    def leave(self):
        self.flask.session.clear()
        return self.flask.redirect(self.flask.url_for("enter"), 303)

    def guide(self):
        priority = self.flask.request.args.get("priority", "helpful")
        if priority not in ("helpful", "truthful"):
            self.flask.abort(404)
        return self.flask.render_template("guide.html", priority=priority)


# ----------------------------------------------------------------------------- the labelers' pages

class Labelling:
    """Marks, ratings, rankings, demonstrations: one page after the other, each an answer."""

    def __init__(self, app, flask, store, clock):
        self.flask, self.store, self.clock, self.sent = flask, store, clock, {}
        app.add_url_rule("/", "home", self.home)
        app.add_url_rule("/work", "work", self.work)
        app.add_url_rule("/about", "about", self.about, methods=["GET", "POST"])
        app.add_url_rule(f"/item/{NUMBER}/<int(max=99):page>", "item", self.item,
                         methods=["GET", "POST"])
        app.add_url_rule(f"/item/{NUMBER}/skip", "skip", self.skip, methods=["POST"])
        app.add_url_rule("/again", "again", self.again, methods=["POST"])
        app.add_url_rule("/write/<kind>", "write", self.write, methods=["GET", "POST"])

    def go(self, endpoint, **values):
        """To the next page: a redirect, or its address for the script that sent the form."""
        address = self.flask.url_for(endpoint, **values)
        if self.flask.request.headers.get("Accept") == "application/json":
            return {"next": address}
        return self.flask.redirect(address, 303)

    def remember(self, page):
        """Note when a page was first sent."""
        if len(self.sent) > 100_000:  # of forms that were never sent back
            self.sent.clear()
        self.sent.setdefault(page, self.clock())

    def home(self):
        return self.flask.redirect(self.flask.url_for("work"), 303)

    def work(self):
        """The next page of the labeler's open item, or of a new one."""
        me = self.flask.g.me
        if self.store.asks_about(me):
            return self.go("about")
        number = self.store.next_for(me)
        if number is None:
            return self.flask.render_template("done.html", done=self.store.progress(me),
                                              written=self.store.written(me))
        pages = self.pages(self.store.assignment(number, me))
        return self.go("item", number=number, page=self.store.first_unanswered(number, pages))

    def about(self):
        """What a labeler says of themself, before a screening."""
        flask, me, problem = self.flask, self.flask.g.me, None
        if flask.request.method == "POST":
            try:
                self.store.set_about(me, forms.text(flask.request.form, "topics", "note"))
                return self.go("work")
            except forms.Wrong as wrong:
                problem = str(wrong)
        topics = flask.request.form.get("topics", self.store.about(me) or "")
        return flask.render_template("about.html", topics=topics, problem=problem), (
            200 if problem is None else 422)

    def pages(self, assignment):
        """The pages of an item: [(kind, output or None)]."""
        outputs = self.store.outputs(assignment["item"], self.flask.g.me)
        rates = [("rate", output) for output in outputs]
        return {"rank": [("rank", None)], "demonstrate": [("demonstrate", None)],
                "rate": [("marks", None), *rates],
                "rate_rank": [("marks", None), *rates, ("rank", None)]}[assignment["task"]]

    def item(self, number, page):
        """Page `page` of an assignment: show it, or keep its answer."""
        flask, me = self.flask, self.flask.g.me
        assignment = self.store.assignment(number, me)
        if assignment is None or me["removed"]:
            flask.abort(404)
        pages = self.pages(assignment)
        if not 1 <= page <= len(pages):
            flask.abort(404)
        if assignment["state"] != "open":
            if flask.request.method == "POST":
                flask.flash("This item already has your answer. The first one counts.")
            return self.go("work")
        self.store.touch(number)
        kind, output = pages[page - 1]
        problem = None
        if flask.request.method == "POST":
            elapsed = (self.clock() - self.sent[number, page]
                       if (number, page) in self.sent else None)
            try:
                self.keep(assignment, kind, output, page == len(pages), elapsed)
                self.sent.pop((number, page), None)
                if page == len(pages):
                    return self.go("work")
                return self.go("item", number=number, page=page + 1)
            except forms.Wrong as wrong:
                problem = str(wrong)
        self.remember((number, page))
        return self.show(assignment, kind, output, page, pages, problem)

    def show(self, assignment, kind, output, page, pages, problem):
        flask, me = self.flask, self.flask.g.me
        outputs = self.store.outputs(assignment["item"], me)
        marks = self.store.marks_of(assignment)
        code = 200 if problem is None else 422
        return flask.render_template(
            f"{kind}.html", item=assignment, page=page, pages=len(pages), outputs=outputs,
            output=output, letters=forms.LETTERS, marks=marks, problem=problem,
            asked=forms.asked_flags(marks), given=self.store.given(assignment["id"], kind, output),
            form=flask.request.form, done=self.store.progress(me)), code

    def keep(self, assignment, kind, output, last, elapsed):
        """Check the form and keep its answer; it is on the disk when this returns."""
        form, me, number = self.flask.request.form, self.flask.g.me, assignment["id"]
        seconds = forms.seconds(form, elapsed)
        note = forms.text(form, "note", "note")
        if kind == "marks":
            table, values = "marks", {"marks": json.dumps(forms.marks(form))}
        elif kind == "rate":
            likert, flags = forms.rating(form, self.store.marks_of(assignment))
            table, values = "rating", {"output": output["id"], "likert": likert,
                                       "flags": json.dumps(flags), "note": note}
        elif kind == "rank":
            ranks = forms.ranking(form, self.store.outputs(assignment["item"], me))
            if missing := self.store.unrated(assignment):
                raise forms.Wrong(f"{missing} of the outputs are not rated yet: go back to them.")
            table, values = "ranking", {"ranks": json.dumps(ranks), "note": note}
        else:
            fields = {"prompt": assignment["prompt"],
                      "response": forms.text(form, "response", needed=True, label="The response")}
            table, values = "writing", {
                "labeler": me["id"], "form": f"assignment {number}", "kind": "given",
                "fields": json.dumps(fields), "marks": json.dumps(forms.marks(form))}
        if last and kind == "rate" and self.store.unrated(assignment, but=output["id"]):
            last = False  # `work` leads to the page that is missing
        self.store.answer(number, table, {"assignment": number, **values, "seconds": seconds}, last,
                          me)

    def skip(self, number):
        assignment = self.store.assignment(number, self.flask.g.me)
        if assignment is None:
            self.flask.abort(404)
        self.store.skip(number)
        return self.go("work")

    def again(self):
        """Back to the item that was answered last."""
        number = self.store.reopen_last(self.flask.g.me)
        if number is None:
            return self.go("work")
        return self.go("item", number=number, page=len(self.pages(
            self.store.assignment(number, self.flask.g.me))))

    def write(self, kind):
        """Write a prompt and its demonstration: plain, few-shot, or for a use case."""
        flask, me, problem = self.flask, self.flask.g.me, None
        if kind not in forms.KINDS or me["removed"]:
            flask.abort(404)
        form = flask.request.form
        if flask.request.method == "POST":
            try:
                key = forms.text(form, "form", "name", needed=True)
                elapsed = self.clock() - self.sent[key] if key in self.sent else None
                new = self.store.write(me, f"{me['id']} {key}", kind, forms.writing(form, kind),
                                       forms.marks(form), forms.seconds(form, elapsed))
                self.sent.pop(key, None)
                flask.flash("Kept." if new else "This was kept before. The first one counts.")
                return self.go("write", kind=kind)
            except forms.Wrong as wrong:
                problem = str(wrong)
        key = form.get("form") or secrets.token_urlsafe(12)
        self.remember(key)
        return flask.render_template(
            "write.html", kind=kind, kinds=forms.KINDS, categories=forms.CATEGORIES, key=key,
            pairs=forms.PAIRS, problem=problem, form=form, use_case=self.store.use_case(me),
            written=self.store.written(me)), 200 if problem is None else 422
