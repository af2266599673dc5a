------------------------------- MODULE Members -------------------------------
(* Workers as members of the ledger, start authority, eviction and the        *)
(* watchdog (rules 5 and 7; rule 8 is what rule 7 leaves when nothing is      *)
(* renewed). A tick is one unit of true time; every clock errs by at most G   *)
(* over one of the spans AU and T.                                            *)
EXTENDS Permits

\* ------------------------------------------------------------ membership (rule 5)
\* members X are gone: what was counted on them is not any more
Uncharge(X) ==
  LET left(s) == {x \in cnt[s] : x[3] \notin X} IN
  /\ cnt' = [s \in S |-> left(s)]
  /\ size' = [b \in B |-> IF Counted(b) THEN Min(size[b], Cardinality({x \in left(Ses(b)) : x[2] = b})) ELSE size[b]]
\* a new incarnation may join after it saw the older one's sandboxes gone: its join is the older one's eviction
Join(w) ==
  /\ On("join") /\ wst[w] = "off" /\ mem[w] = "no" /\ (w[2] > 1 => wst[<<w[1], w[2] - 1>>] = "dead")
  /\ LET X == {v \in W : v[1] = w[1] /\ v[2] < w[2] /\ mem[v] = "in"} IN
     /\ mem' = [v \in W |-> IF v = w THEN "in" ELSE IF v \in X THEN "evicted" ELSE mem[v]]
     /\ Uncharge(X)
  /\ wst' = [wst EXCEPT ![w] = "joined"]
  /\ wf' = [wf EXCEPT ![w] = IF M("notable") THEN {}
            ELSE {s \in S : sst[s] = "drain" \/ (sst[s] = "count" /\ (~M("fencegc") \/ cnt[s] # {}))}]
  /\ auth' = [auth EXCEPT ![w] = IF On("clock") THEN now + AU ELSE 0] /\ last' = [last EXCEPT ![w] = IF On("clock") THEN now ELSE 0]
  /\ UNCHANGED <<fv, nv, run, acc, bg, bar, sst, need, vv, now, ren, rans, stopped, lc, pv, rv, bad>>
\* the fence table has come
Up(w) == /\ wst[w] = "joined" /\ wst' = [wst EXCEPT ![w] = "up"]
         /\ UNCHANGED <<fv, nv, wf, run, acc, bg, bar, lv, vv, cv, pv, rv, bad>>
Gone(w, as) == /\ wst' = [wst EXCEPT ![w] = as] /\ wf' = [wf EXCEPT ![w] = {}]
               /\ bar' = {x \in bar : x[2] # w}
               /\ ren' = [ren EXCEPT ![w] = NONE] /\ rans' = [rans EXCEPT ![w] = NONE] /\ stopped' = [stopped EXCEPT ![w] = FALSE]
\* the host goes down, or the next incarnation kills everything before it joins
Die(w) ==
  /\ On("die") /\ wst[w] \in {"up", "joined"} /\ Gone(w, "dead")
  /\ run' = IF M("ghost") THEN run ELSE {t \in run : t[3] # w}
  /\ acc' = {t \in acc : t[3] # w}
  /\ UNCHANGED <<fv, nv, bg, lv, vv, now, auth, last, lc, pv, rv, bad>>
\* it refuses starts and runs nothing
Leave(w) ==
  /\ On("leave") /\ wst[w] = "up" /\ ~stopped[w] /\ (M("leaverunning") \/ ~\E t \in run \cup acc : t[3] = w)
  /\ Gone(w, IF M("leavestarts") THEN "left" ELSE "dead")
  /\ mem' = [mem EXCEPT ![w] = "left"] /\ Uncharge({w})
  /\ UNCHANGED <<fv, nv, run, acc, bg, sst, need, vv, now, auth, last, lc, pv, rv, bad>>
\* an operator's word, which is proof: the host is dead, and the ledger hears of it
Declare(w) ==
  /\ On("declare") /\ wst[w] = "dead" /\ mem[w] = "in" /\ mem' = [mem EXCEPT ![w] = "evicted"] /\ Uncharge({w})
  /\ UNCHANGED <<fv, nv, wv, sst, need, vv, cv, pv, rv, bad>>

\* ------------------------------------------------------------ authority (rule 7)
Busy(w) == \E t \in run \cup (IF M("killrunningonly") THEN {} ELSE acc) : t[3] = w
\* the spawner's promise bounds time: nothing of a worker is left past authority + timeout + grace, by its clock
Tick == /\ On("clock") /\ now < TMAX
        /\ \A w \in W : Busy(w) /\ ~(M("nowatchdog") /\ stopped[w]) => now + 1 < auth[w] + T + G
        /\ now' = now + 1 /\ UNCHANGED <<fv, nv, wv, lv, vv, auth, ren, rans, last, stopped, lc, pv, rv, bad>>
Renew(w) == /\ On("clock") /\ Awake(w) /\ ren[w] = NONE /\ rans[w] = NONE /\ auth[w] < now + AU /\ ren' = [ren EXCEPT ![w] = now]
            /\ UNCHANGED <<fv, nv, wv, lv, vv, now, auth, rans, last, stopped, lc, pv, rv, bad>>
\* after a quorum confirmed the leader since the renewal arrived
Answer(w) == /\ ren[w] # NONE /\ mem[w] = "in" /\ rans' = [rans EXCEPT ![w] = ren[w]] /\ ren' = [ren EXCEPT ![w] = NONE]
             /\ last' = [last EXCEPT ![w] = now]
             /\ UNCHANGED <<fv, nv, wv, lv, vv, now, auth, stopped, lc, pv, rv, bad>>
\* mutant: a leader that was deposed and doesn't know it answers
StaleAnswer(w) ==
             /\ M("staleleader") /\ lc > 0 /\ ren[w] # NONE /\ rans' = [rans EXCEPT ![w] = ren[w]] /\ ren' = [ren EXCEPT ![w] = NONE]
             /\ UNCHANGED <<fv, nv, wv, lv, vv, now, auth, last, stopped, lc, pv, rv, bad>>
\* counted from when the renewal was sent
RecvAnswer(w) == /\ rans[w] # NONE /\ Awake(w) /\ rans' = [rans EXCEPT ![w] = NONE]
             /\ auth' = [auth EXCEPT ![w] = Max(@, (IF M("receipt") THEN now ELSE rans[w]) + AU)]
             /\ UNCHANGED <<fv, nv, wv, lv, vv, now, ren, last, stopped, lc, pv, rv, bad>>
\* a renewal or its answer is lost
LoseRenewal(w) == /\ On("losttime") /\ (ren[w] # NONE \/ rans[w] # NONE)
                  /\ ren' = [ren EXCEPT ![w] = NONE] /\ rans' = [rans EXCEPT ![w] = NONE]
                  /\ UNCHANGED <<fv, nv, wv, lv, vv, now, auth, last, stopped, lc, pv, rv, bad>>
Wait == IF M("early") THEN AU + G ELSE IF M("notimeout") THEN AU + 2 * G ELSE IF M("nodrift") THEN AU + T ELSE AU + T + 2 * G
Evict(w) == /\ On("clock") /\ mem[w] = "in" /\ now + G >= last[w] + Wait
            /\ mem' = [mem EXCEPT ![w] = "evicted"] /\ Uncharge({w})
            /\ UNCHANGED <<fv, nv, wv, sst, need, vv, cv, pv, rv, bad>>
Stop(w) == /\ On("stop") /\ wst[w] = "up" /\ ~stopped[w] /\ stopped' = [stopped EXCEPT ![w] = TRUE]
           /\ UNCHANGED <<fv, nv, wv, lv, vv, now, auth, ren, rans, last, lc, pv, rv, bad>>
Cont(w) == /\ stopped[w] /\ stopped' = [stopped EXCEPT ![w] = FALSE]
           /\ UNCHANGED <<fv, nv, wv, lv, vv, now, auth, ren, rans, last, lc, pv, rv, bad>>
\* the spawner destroys every sandbox, so that an accepted start finds none either
Kill(w) == /\ On("clock") /\ (\E t \in run \cup acc : t[3] = w) /\ now >= auth[w] + T
           /\ (M("nowatchdog") => ~stopped[w])
           /\ LET X == {t \in run : t[3] = w} \cup (IF M("killrunningonly") THEN {} ELSE {t \in acc : t[3] = w}) IN
              run' = run \ X /\ acc' = acc \ X /\ ans' = Tell(X, "E") /\ endm' = endm \cup Reported(X)
           /\ UNCHANGED <<ep, held, inv, msg, dn, gv, old, rep, cuts, wst, wf, bg, bar, lv, vv, cv, pv, rv, bad>>
==============================================================================
