/* Publication of a table: runs, a compaction and vacuums that write to it at the same time.

   docs/protocol/README.md says what is modelled and how to read this; scripts/check_protocol.sh checks it.

   An `atomic` is one step of a writer on the storage. Between two steps a writer may be paused for any time, also for ever: then
   it was killed. Nobody ever notices that a claim was lost, so that the checks hold whatever clocks and claims do.

   Sets are bits of a number. The table has two images, 1 and 2 (both: 3). Each run makes at most one file for each image:
   bits 0 and 1 are the files of run 0, bits 2 and 3 those of run 1, and so on; a file's name is never used again.

   The script says how many writers there are (RUNS, COMPACTIONS, VACUUMS) and which images (ALL_IMAGES). */

#define FILES_OF(writer) (3 << (2 * (writer)))
#define MERGED 64 /* the file of the compaction: it holds all images */
#define WITH_1 (1 + 4 + 16 + MERGED)
#define WITH_2 (2 + 8 + 32 + (ALL_IMAGES == 3) * MERGED)
#define IMAGES(files) ((((files) & WITH_1) != 0) + 2 * (((files) & WITH_2) != 0))
#define FIRST(files) ((files) & -(files))
#define SEVERAL(files) (((files) & ((files) - 1)) != 0)
#define IN(part, whole) (((part) & ~(whole)) == 0)

/* The storage. */
byte source = 1;                /* the images of the source; the second one may arrive later */
byte staged, placed;            /* the files in the staging folder, and in their published places */
byte records;                   /* the files whose records are in the staging folder */
bool has_state;                 /* state.json: */
byte state_run, state_taken;    /*   the run under way, the files it took over, */
byte state_base;                /*   and the version that it started from */
byte last;                      /* the number of the last version; 0 is the empty table */
byte listed;                    /* the files that the last version lists, */
byte older;                     /*   and those of the older versions that are still readable, together */
byte last_vacuum;               /* the last version that a vacuum published */
byte begun;                     /* the number of runs that have begun */
hidden byte before;

/* What must hold at every moment: the files of all readable versions are there. */
#define check() assert(IN(listed | older, placed))

/* One commit: the file of version `base + 1` is created exclusively. Otherwise another writer has won. */
inline commit(new_listed, is_vacuum) {
    atomic {
        before = listed;
#if defined(OVERWRITE)          /* as manifest.json in 0.1: the one document is replaced, whatever it has become */
        has_won = true; listed = new_listed; older = older | before;
#elif defined(NO_BASE_CHECK)    /* the next free number, whatever has been published since; what the others added stays */
        has_won = true; listed = listed | (new_listed); older = older | before;
#else
        has_won = (last == base);
        if
        :: has_won -> listed = new_listed; older = older | before
        :: else -> assert(last > base)                          /* another writer has won version base + 1 */
        fi;
#endif
        if
        :: has_won ->
            last++;
            last_vacuum = (is_vacuum -> last : last_vacuum);
            assert(IN(IMAGES(before), IMAGES(listed)));         /* nothing published is lost */
            assert(!SEVERAL(listed & WITH_1) && !SEVERAL(listed & WITH_2));     /* no image has two rows */
            check()
        :: else
        fi
    }
}

/* staging.read_unfinished: the finished files of a killed run, as far as they are whole. Those that are placed already count only
   if no vacuum has come since that run began: it may be about to remove them. */
inline read_unfinished(found) {
    atomic {
        if
        :: has_state -> found = (state_taken | (records & FILES_OF(state_run))) & (staged | placed)
        :: else -> found = 0
        fi;
#ifndef STATE_WITHOUT_BASE
        if
        :: has_state && state_base < vacuum_before -> found = found & staged
        :: else
        fi
#endif
    }
}

/* Removal from the staging folder, file by file, of what was there at the beginning and is not in `kept`. */
inline remove_staged(kept) {
    list = (staged | records) & ~(kept);
    do
    :: atomic { list != 0 -> staged = staged & ~FIRST(list); records = records & ~FIRST(list); list = list & (list - 1) }
    :: atomic { list == 0 -> break }
    od
}

/* The whole staging folder; state.json goes last. */
inline remove_staging() {
    remove_staged(0);
    atomic { has_state = false; state_run = 0; state_taken = 0; state_base = 0 }
}

/* staging.place_files: each of `new` goes to its published place; then they are looked for there. */
inline place_files() {
#ifdef REMOVE_IF_EMPTY          /* F1: an empty folder in the way is removed with all that is in it by then */
    atomic { is_empty = (placed == 0) };
    atomic {
        if
        :: is_empty -> placed = 0; check()
        :: else
        fi;
        is_empty = false
    };
#endif
    atomic {
        list = staged & new;
        if
        :: !IN(new & ~list, placed) -> goto failed
        :: else
        fi
    };
#ifdef FOLDER_RENAME            /* F2: the staged folder is renamed as a whole, and nothing is looked for afterwards */
    atomic { placed = placed | staged; staged = 0; list = 0 };
#else
    do
    :: atomic { (list & staged) != 0 && (FIRST(list) & staged) != 0 ->
            staged = staged & ~FIRST(list); placed = placed | FIRST(list); list = list & (list - 1) }
    :: atomic { list == 0 || (FIRST(list) & staged) == 0 -> list = 0; break }
    od;
    atomic {
        if
        :: !IN(new, placed) -> goto failed
        :: else
        fi
    };
#endif
}

/* building.build.build_table */
proctype Run(byte me) {
    byte base, vacuum_before, files, wanted, taken, todo, new, list;
    bool has_won, is_empty;

    atomic { begun == me ->                        /* runs are alike: they begin in the order of their numbers */
        if
        :: source = ALL_IMAGES
        :: skip
        fi;
        wanted = source;
        begun++;
        base = last; files = listed; vacuum_before = last_vacuum
    }
    read_unfinished(taken);
    atomic {
        taken = taken & ~files;
        if :: IMAGES(files) & 1 -> taken = taken & ~WITH_1 :: else fi;
        if :: IMAGES(files) & 2 -> taken = taken & ~WITH_2 :: else fi;
        if :: wanted & 2 :: else -> taken = taken & ~WITH_2 fi;
        todo = wanted & ~IMAGES(files | taken);
        if
        :: todo == 0 && taken == 0 -> goto done
        :: else
        fi
    }
    atomic { has_state = true; state_run = me; state_taken = taken; state_base = base }
    remove_staged(taken);
    new = taken;
    do
    :: atomic { todo != 0 ->
            new = new | (FIRST(todo) << (2 * me));
            staged = staged | (FIRST(todo) << (2 * me));
            records = records | (FIRST(todo) << (2 * me));
            todo = todo & (todo - 1) }
    :: atomic { todo == 0 -> break }
    od;
    place_files();
    commit(files | new, false);
    if
    :: has_won -> assert(IMAGES(files | new) == wanted)   /* a completed run has all images */
    :: else -> goto failed
    fi;
#ifdef CLEAN_UNLISTED           /* as in 0.1: what the new version does not list is removed at once */
    atomic { placed = placed & (files | new); check() };
#endif
done:
    remove_staging();
failed:
    atomic { base = 0; vacuum_before = 0; files = 0; wanted = 0; taken = 0; todo = 0; new = 0; list = 0; has_won = false }
}

#if COMPACTIONS > 0
/* upkeep.compaction.compact_table */
proctype Compaction() {
    byte base, vacuum_before, files, found, new, list;
    bool has_won, is_empty;

    atomic { IMAGES(listed) == ALL_IMAGES -> base = last; files = listed; vacuum_before = last_vacuum }
    read_unfinished(found);
    if
    :: !IN(found, files) -> goto failed     /* a run must finish first */
    :: else
    fi;
    remove_staging();
    atomic { new = MERGED; staged = staged | MERGED };
    place_files();
    commit(new, false);
    if
    :: has_won -> remove_staging()
    :: else
    fi;
failed:
    atomic { base = 0; vacuum_before = 0; files = 0; found = 0; new = 0; list = 0; has_won = false }
}
#endif

#if VACUUMS > 0
/* upkeep.versions.vacuum */
proctype Vacuum() {
    byte base, vacuum_before, files, kept, found, gone;
    bool has_won;

    atomic {
        base = last; files = listed; vacuum_before = last_vacuum;
        if
        :: older = 0            /* by the storage's clock, the time of grace of the older versions is over */
        :: skip
        fi;
#ifdef NO_GRACE
        kept = files
#else
        kept = files | older
#endif
    }
    read_unfinished(found);
    atomic { gone = placed & ~kept & ~found; kept = 0; found = 0 };
#ifndef DELETE_FIRST
    commit(files, true);
    if
    :: has_won
    :: else -> goto failed
    fi;
#endif
    do
    :: atomic { gone != 0 -> placed = placed & ~FIRST(gone); gone = gone & (gone - 1); check() }
    :: atomic { gone == 0 -> break }
    od;
#ifdef DELETE_FIRST
    commit(files, true);
#endif
failed:
    atomic { base = 0; vacuum_before = 0; files = 0; gone = 0; has_won = false }
}
#endif

init {
    atomic {
        run Run(0);
#if RUNS > 1
        run Run(1);
#endif
#if RUNS > 2
        run Run(2);
#endif
#if COMPACTIONS > 0
        run Compaction();
#endif
#if VACUUMS > 0
        run Vacuum();
#endif
#if VACUUMS > 1
        run Vacuum()
#endif
    }
}
