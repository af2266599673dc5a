------------------------------- MODULE Permits -------------------------------
(* Blocks, the hot path, starts and ends, frontends that come and go, fences  *)
(* and counts (rules 1, 2, 3, 6), and streams that break (rule 10).           *)
EXTENDS State

\* ------------------------------------------------------------ blocks (rules 1 and 2)
GRANTED == 99  \* in .r: a grant went out for it, the ledger waits no longer
WaitAt(b) == \E i \in I : inv[i].s = "wait" /\ inv[i].f = Fr(b) /\ b[3] \in Pools(i, view[Fr(b)])
Waiters == {i \in I : inv[i].s = "wait" /\ inv[i].r \in 1..(NR + 1)}
\* whose request may have a free permit: while requests wait the oldest one's, never a top-up
Wants(f, p) == IF Waiters = {} \/ p # RP THEN On("topup")
  ELSE \/ M("anyorder") /\ On("topup")
       \/ \E i \in Waiters : inv[i].f = f /\ (M("anyorder") \/ \A j \in Waiters : inv[i].r <= inv[j].r)
Room(b) == Len(dn[b]) < (IF On("loss") THEN 2 ELSE 1)
Grant(b) ==
  /\ sst[Ses(b)] \in {"no", "live"} /\ ep[Fr(b)] = b[2] /\ (view[Fr(b)] = gen \/ M("oldgengrant"))
  /\ (size[b] = 0 \/ gen = 1 \/ Fr(b) \in gack \/ M("oldgengrant")) /\ Room(b) /\ Wants(Fr(b), b[3])
  /\ \E n \in 1..Min(Free(b[3]), BMAX) :
       /\ size' = [size EXCEPT ![b] = @ + n] /\ sst' = [sst EXCEPT ![Ses(b)] = "live"]
       /\ IF On("flight")
          THEN /\ held' = held  \* without a stream it isn't sent: Welcome makes up for it
               /\ dn' = IF Fr(b) \in cuts.down THEN dn
                        ELSE [dn EXCEPT ![b] = Append(@, [size |-> size[b] + n, pend |-> gv[b]])]
          ELSE held' = [held EXCEPT ![b] = @ + n] /\ dn' = dn
  /\ LET X == {i \in Waiters : inv[i].f = Fr(b) /\ \A j \in Waiters : inv[j].f = Fr(b) => inv[i].r <= inv[j].r} IN
     IF X = {} \/ b[3] # RP THEN inv' = inv ELSE \E i \in X : inv' = [inv EXCEPT ![i].r = GRANTED]
  /\ UNCHANGED <<ep, ans, msg, gv, old, endm, rep, cuts, wv, need, cnt, mem, vv, cv, pv, rv, bad>>
\* held = the answer's size less own give-backs that it hadn't applied yet; older answers are dropped
RecvGrant(b, k) ==
  /\ k \in 1..Len(dn[b]) /\ (k = 1 \/ M("oldanswer")) /\ ep[Fr(b)] = b[2]
  /\ held' = [held EXCEPT ![b] = Max(Minus(dn[b][k].size, IF M("absans") THEN 0 ELSE dn[b][k].pend), Cardinality(Out(b)))]
  /\ dn' = [dn EXCEPT ![b] = [j \in 1..(Len(@) - 1) |-> IF j < k THEN @[j] ELSE @[j + 1]]]
  /\ UNCHANGED <<ep, inv, ans, msg, gv, old, endm, rep, cuts, wv, lv, vv, cv, pv, rv, bad>>
\* n permits of b go back, in order behind what went back before
SendBack(b, n) ==
  IF On("flight") THEN /\ gv' = [gv EXCEPT ![b] = @ + n] /\ size' = size
                       /\ dn' = [dn EXCEPT ![b] = [k \in 1..Len(@) |-> [@[k] EXCEPT !.pend = @ + n]]]
  ELSE gv' = gv /\ dn' = dn /\ size' = IF Live(b) THEN [size EXCEPT ![b] = Minus(@, n)] ELSE size
Give(b) ==
  /\ On("give") /\ ep[Fr(b)] = b[2] /\ held[b] > 0 /\ (Idle(b) > 0 \/ M("giveused")) /\ ~WaitAt(b)
  /\ held' = [held EXCEPT ![b] = @ - 1] /\ SendBack(b, 1)
  /\ UNCHANGED <<ep, inv, ans, msg, old, endm, rep, cuts, wv, sst, need, cnt, mem, vv, cv, pv, rv, bad>>
\* applied once and in order; that of a draining or counted session is refused
ApplyGive(b) ==
  /\ gv[b] > 0 /\ gv' = [gv EXCEPT ![b] = @ - 1]
  /\ size' = IF Live(b) \/ M("givelate") THEN [size EXCEPT ![b] = Minus(@, 1)] ELSE size
  /\ old' = IF On("loss") /\ cuts.n > 0 THEN old \cup {b} ELSE old
  /\ UNCHANGED <<fv, msg, dn, endm, rep, cuts, wv, sst, need, cnt, mem, vv, cv, pv, rv, bad>>
\* it was sent again after a stream broke, and both copies arrive
ApplyAgain(b) ==
  /\ b \in old /\ old' = old \ {b}
  /\ size' = IF M("twice") /\ Live(b) THEN [size EXCEPT ![b] = Minus(@, 1)] ELSE size
  /\ UNCHANGED <<fv, msg, dn, gv, endm, rep, cuts, wv, sst, need, cnt, mem, vv, cv, pv, rv, bad>>
\* a frontend's stream breaks: all that was on its way to or from it is lost; give-backs are kept and sent again.
\* What a grant, a recall or a refusal said is said anew by Welcome and by asking again. Permits that are held go on.
Break(f) ==
  /\ On("loss") /\ cuts.n < NB /\ cuts' = [n |-> cuts.n + 1, down |-> cuts.down \cup {f}]
  /\ dn' = IF M("oldanswer") THEN dn ELSE [b \in B |-> IF Fr(b) = f THEN <<>> ELSE dn[b]]
  /\ rq' = {m \in rq : m[2] # f} /\ ra' = {a \in ra : a[2] # f}
  /\ inv' = [i \in I |-> IF inv[i].f = f /\ inv[i].s = "wait" THEN [inv[i] EXCEPT !.r = 0, !.no = "-"] ELSE inv[i]]
  /\ UNCHANGED <<ep, held, ans, msg, gv, old, endm, rep, wv, lv, vv, cv, pv, rnd, bad>>
\* sizes first, then the recall that is still open
Welcome(f) ==
  /\ f \in cuts.down /\ \A b \in B : Fr(b) = f => Room(b)
  /\ cuts' = [cuts EXCEPT !.down = @ \ {f}]
  /\ dn' = [b \in B |-> IF Fr(b) = f /\ b[2] = ep[f] /\ Live(b) /\ size[b] # held[b] + gv[b]
                        THEN Append(dn[b], [size |-> size[b], pend |-> gv[b]]) ELSE dn[b]]
  /\ rq' = IF rnd.open /\ f \in rnd.wait THEN rq \cup {<<rnd.n, f>>} ELSE rq
  /\ UNCHANGED <<fv, msg, gv, old, endm, rep, wv, lv, vv, cv, pv, rnd, ra, bad>>

\* ------------------------------------------------------------ invocations (rules 2 and 3)
Arrive(i, f) ==
  /\ On("recall") /\ inv[i].s = "new" /\ ep[f] <= E
  /\ inv' = [inv EXCEPT ![i] = [@ EXCEPT !.s = "wait", !.f = f, !.hb = InUse(RP, gen)]]
  /\ UNCHANGED <<ep, held, ans, nv, wv, lv, vv, cv, pv, rv, bad>>
\* the hot path: a permit that is held and idle admits; the start goes out
Take(i, f, w) ==
  \E p \in Pools(i, view[f]) :
  LET k == view[f]  b == <<f, ep[f], p>> IN
  /\ ep[f] <= E
  /\ \/ inv[i].s = "new" /\ ~On("recall") /\ (inv[i].n = 0 \/ (inv[i].f = f /\ inv[i].w # w))
     \/ inv[i].s = "wait" /\ inv[i].f = f
  /\ Idle(b) > 0 /\ mem[w] = "in"
  /\ inv' = [j \in I |->
        IF j = i THEN [Fresh EXCEPT !.s = "out", !.f = f, !.b = b, !.w = w, !.n = inv[i].n, !.v = IF On("put") THEN k ELSE 0,
                                    !.late = (ret > k)]
        ELSE IF inv[j].s = "wait" /\ (RP = p \/ (i \in IG /\ RP = Home(gen) /\ p \in {"U", "R"})) THEN [inv[j] EXCEPT !.hb = @ + 1]
        ELSE inv[j]]
  /\ msg' = msg \cup {<<i, b, w>>}
  /\ bad' = IF On("put") /\ k = gen /\ Live(b) /\ TruthUse(p) + 1 > Lim(p) THEN "start above the limit" ELSE bad
  /\ UNCHANGED <<ep, held, ans, dn, gv, old, endm, rep, cuts, wv, lv, vv, cv, pv, rv>>
Awake(w) == wst[w] = "up" /\ ~stopped[w]
\* who hears a start: the incarnation that it names, or (mutant) whoever is at that host's address
At(w) == IF M("noinc") THEN {v \in W : v[1] = w[1]} ELSE {w}
AuthOK(w) == ~On("clock") \/ now < auth[w] + G \/ M("nocheck")
Begin(t, w) ==
  /\ t \in msg /\ w \in At(t[3]) /\ ~stopped[w]
  /\ wst[w] = "up" \/ (wst[w] = "joined" /\ M("beforetable")) \/ (wst[w] = "left" /\ M("leavestarts"))
  /\ msg' = IF On("dup") THEN msg ELSE msg \ {t}
  /\ LET i == t[1]  b == t[2]  u == <<i, b, w>>
         ok == (Ses(b) \notin wf[w] \/ wst[w] = "joined") /\ <<i, w>> \notin bar /\ AuthOK(w) /\ (On("dup") => <<i, w>> \notin bg)
         mine == inv[i].s = "out" /\ inv[i].b = b /\ inv[i].w = t[3] IN
     IF ok THEN
       /\ IF On("twostep") THEN acc' = acc \cup {u} /\ run' = run ELSE run' = run \cup {u} /\ acc' = acc
       /\ bg' = bg \cup {<<i, w>>} /\ ans' = ans /\ bar' = bar
       /\ bad' = IF \E v \in W : <<i, v>> \in bg THEN "started twice"
                 ELSE IF mine /\ inv[i].late THEN "start admitted after the change was answered, under the old limits"
                 ELSE IF On("literal") /\ ret = gen /\ Cardinality(Running(b[3])) >= Lim(b[3]) THEN "begun while not below"
                 ELSE IF On("put") /\ mine /\ inv[i].v = gen /\ i \in IG /\ Home(gen) = "R"
                         /\ Cardinality({x \in run : x[1] \in IG}) >= Lim("R") + Lim("P") THEN "g above its reservation"
                 ELSE bad
     ELSE \* a refusal is a NeverStarted; where a start may come again it bars the id as well
          /\ ans' = IF mine /\ <<i, w>> \notin bg THEN [ans EXCEPT ![i] = "N"] ELSE ans
          /\ bar' = IF On("dup") /\ ~M("refusenobar") THEN bar \cup {<<i, w>>} ELSE bar
          /\ UNCHANGED <<run, acc, bg, bad>>
  /\ UNCHANGED <<ep, held, inv, dn, gv, old, endm, rep, cuts, wst, wf, lv, vv, cv, pv, rv>>
\* accepted and begun are two steps: the agent may be stopped between them
Act(t) ==
  /\ t \in acc /\ Awake(t[3]) /\ acc' = acc \ {t} /\ run' = run \cup {t}
  /\ UNCHANGED <<fv, nv, wst, wf, bg, bar, lv, vv, cv, pv, rv, bad>>
Tell(X, a) == [i \in I |-> IF \E t \in X : t[1] = i /\ inv[i].s = "out" /\ inv[i].b = t[2] /\ inv[i].w[1] = t[3][1] THEN a ELSE ans[i]]
Reported(X) == {t \in X : Ses(t[2]) \in wf[t[3]]}  \* of fenced sessions: their ENDs go up
End(t) ==
  /\ t \in run /\ Awake(t[3]) /\ run' = run \ {t} /\ ans' = Tell({t}, "E") /\ endm' = endm \cup Reported({t})
  /\ UNCHANGED <<ep, held, inv, msg, dn, gv, old, rep, cuts, wst, wf, acc, bg, bar, lv, vv, cv, pv, rv, bad>>
\* the frontend learns of it: a permit of an older generation goes back to the ledger, another one is idle again
Back(i) == LET b == inv[i].b  f == Fr(b) IN
  IF On("put") /\ b[2] = ep[f] /\ inv[i].v < view[f] /\ held[b] > 0 /\ ~M("keepold")
  THEN held' = [held EXCEPT ![b] = @ - 1] /\ SendBack(b, 1)
  ELSE UNCHANGED <<held, gv, dn, size>>
FrontAns(i) ==
  /\ ans[i] # "-" /\ inv[i].s = "out" /\ ans' = [ans EXCEPT ![i] = "-"] /\ Back(i)
  /\ inv' = [inv EXCEPT ![i] = IF ans[i] = "N" /\ On("retry") /\ @.n = 0
                               THEN [Fresh EXCEPT !.n = 1, !.f = inv[i].f, !.w = inv[i].w] ELSE Done("end")]
  /\ UNCHANGED <<ep, msg, old, endm, rep, cuts, wv, sst, need, cnt, mem, vv, cv, pv, rv, bad>>
\* mutants: the permit comes back on Result (the sandbox still runs); when the client or a deadline is gone; a start
\* of which nothing is known is tried elsewhere
Early(i) ==
  /\ \/ M("result") /\ inv[i].s = "out" /\ \E t \in run : t[1] = i /\ t[2] = inv[i].b
     \/ M("timeoutfrees") /\ inv[i].s = "out"
  /\ inv' = [inv EXCEPT ![i] = Done("end")]
  /\ UNCHANGED <<ep, held, ans, nv, wv, lv, vv, cv, pv, rv, bad>>
RetryUnsure(i) ==
  /\ M("retryunsure") /\ inv[i].s = "out" /\ inv[i].n = 0
  /\ inv' = [inv EXCEPT ![i] = [Fresh EXCEPT !.n = 1, !.f = inv[i].f, !.w = inv[i].w]]
  /\ UNCHANGED <<ep, held, ans, nv, wv, lv, vv, cv, pv, rv, bad>>
\* the stream to the worker broke: the frontend asks on the next one; NeverStarted bars the id
Query(i) ==
  /\ On("query") /\ inv[i].s = "out" /\ ans[i] = "-" /\ Awake(inv[i].w) /\ <<i, inv[i].w>> \notin bg
  /\ ans' = [ans EXCEPT ![i] = "N"]
  /\ bar' = IF M("nobar") THEN bar ELSE bar \cup {<<i, inv[i].w>>}
  /\ UNCHANGED <<ep, held, inv, nv, wst, wf, run, acc, bg, lv, vv, cv, pv, rv, bad>>
\* the ledger says that this worker incarnation is a member no more
FrontEvict(i) ==
  /\ inv[i].s = "out" /\ mem[inv[i].w] \in {"evicted", "left"} /\ Back(i)
  /\ inv' = [inv EXCEPT ![i] = Done("end")] /\ ans' = [ans EXCEPT ![i] = "-"]
  /\ UNCHANGED <<ep, msg, old, endm, rep, cuts, wv, sst, need, cnt, mem, vv, cv, pv, rv, bad>>

\* ------------------------------------------------------------ frontends come and go (rule 6)
Forget(f) == /\ ep' = [ep EXCEPT ![f] = @ + 1]
             /\ held' = [b \in B |-> IF Fr(b) = f THEN 0 ELSE held[b]]
             /\ dn' = [b \in B |-> IF Fr(b) = f THEN <<>> ELSE dn[b]]
Crash(f) ==
  /\ On("crash") /\ ep[f] <= E /\ sst[<<f, ep[f]>>] = "live" /\ Forget(f)
  /\ inv' = [i \in I |-> IF inv[i].f = f /\ inv[i].s # "end" THEN Done("end") ELSE inv[i]]
  /\ ans' = [i \in I |-> IF inv[i].f = f THEN "-" ELSE ans[i]]
  /\ UNCHANGED <<msg, gv, old, endm, rep, cuts, wv, lv, vv, cv, pv, rv, bad>>
\* a zombie learns that its session is fenced and begins another; what is out stays out
Return(f) ==
  /\ ep[f] <= E /\ sst[<<f, ep[f]>>] \in {"drain", "count"} /\ Forget(f)
  /\ UNCHANGED <<inv, ans, msg, gv, old, endm, rep, cuts, wv, lv, vv, cv, pv, rv, bad>>
\* silent, or replaced by a newer session: draining
Suspect(s) ==
  /\ (On("suspect") \/ ep[s[1]] > s[2]) /\ sst[s] = "live"
  /\ sst' = [sst EXCEPT ![s] = "drain"] /\ need' = [need EXCEPT ![s] = {w \in W : mem[w] = "in"}]
  /\ inv' = [i \in I |-> IF inv[i].s = "wait" /\ inv[i].f = s[1] THEN [inv[i] EXCEPT !.r = 0] ELSE inv[i]]
  /\ rnd' = [rnd EXCEPT !.wait = @ \ {s[1]}]  \* its answer isn't coming
  /\ UNCHANGED <<ep, held, ans, nv, wv, size, cnt, mem, vv, cv, pv, rq, ra, bad>>
Runs(w, s) == {<<t[1], t[2], w>> : t \in {u \in run \cup (IF M("ackrunonly") THEN {} ELSE acc) : Ses(u[2]) = s /\ u[3] = w}}
\* fence installed and report given in one step of the worker, which the leader hears at once
Ack(w, s) ==
  /\ ~On("reports") /\ sst[s] = "drain" /\ w \in need[s] /\ w \notin ackd[s] /\ Awake(w)
  /\ wf' = IF M("nofence") THEN wf ELSE [wf EXCEPT ![w] = @ \cup {s}]
  /\ ackd' = [ackd EXCEPT ![s] = @ \cup {w}] /\ arun' = [arun EXCEPT ![s] = @ \cup Runs(w, s)]
  /\ UNCHANGED <<fv, nv, wst, run, acc, bg, bar, lv, cv, pv, rv, bad>>
\* the same where reports travel, are lost and come late
Fence(w, s) ==
  /\ On("reports") /\ sst[s] = "drain" /\ w \in need[s] /\ w \notin ackd[s] /\ Awake(w)
  /\ wf' = IF M("reportfirst") THEN wf ELSE [wf EXCEPT ![w] = @ \cup {s}]
  /\ rep' = {m \in rep : m[1] # w \/ m[2] # s} \cup {<<w, s, Runs(w, s)>>}
  /\ UNCHANGED <<fv, msg, dn, gv, old, endm, cuts, wst, run, acc, bg, bar, lv, vv, cv, pv, rv, bad>>
Report(m) ==
  /\ m \in rep /\ rep' = rep \ {m} /\ sst[m[2]] = "drain"
  /\ ackd' = [ackd EXCEPT ![m[2]] = @ \cup {m[1]}] /\ arun' = [arun EXCEPT ![m[2]] = @ \cup m[3]]
  /\ wf' = IF M("reportfirst") THEN [wf EXCEPT ![m[1]] = @ \cup {m[2]}] ELSE wf
  /\ UNCHANGED <<fv, msg, dn, gv, old, endm, cuts, wst, run, acc, bg, bar, lv, cv, pv, rv, bad>>
Count(s) ==
  /\ sst[s] = "drain" /\ (M("countearly") \/ \A w \in need[s] : w \in ackd[s] \/ mem[w] # "in")
  /\ LET c == IF M("noevidence") THEN {} ELSE {x \in arun[s] : mem[x[3]] = "in" /\ (M("firstpool") => x[2][3] = "U")}
         ids(b) == Cardinality({x \in c : x[2] = b}) IN
     /\ cnt' = [cnt EXCEPT ![s] = c]
     /\ size' = [b \in B |-> IF Ses(b) # s THEN size[b] ELSE IF M("sumofreports") THEN ids(b) ELSE Min(size[b], ids(b))]
  /\ sst' = [sst EXCEPT ![s] = "count"] /\ need' = [need EXCEPT ![s] = {}]
  /\ ackd' = [ackd EXCEPT ![s] = {}] /\ arun' = [arun EXCEPT ![s] = {}]
  /\ UNCHANGED <<fv, nv, wv, mem, cv, pv, rv, bad>>
\* an END names its invocation, so that one too many does nothing; a report that was sent before it is an older stream's
ApplyEnd(t) ==
  LET b == t[2]  s == Ses(t[2]) IN
  /\ t \in endm /\ (endm' = endm \ {t} \/ (On("reports") /\ endm' = endm))
  /\ arun' = [arun EXCEPT ![s] = @ \ {t}] /\ cnt' = [cnt EXCEPT ![s] = @ \ {t}]
  /\ rep' = IF M("oldreport") THEN rep ELSE {m \in rep : t \notin m[3]}
  /\ size' = IF sst[s] # "count" THEN size
             ELSE [size EXCEPT ![b] = IF M("endcount") THEN Minus(@, 1) ELSE Min(@, Cardinality({x \in cnt[s] \ {t} : x[2] = b}))]
  /\ UNCHANGED <<fv, msg, dn, gv, old, cuts, wv, sst, need, mem, ackd, cv, pv, rv, bad>>
==============================================================================
